"""The HTTP endpoint as an OpenAPI document; the tests compare it with what the endpoint answers."""

from __future__ import annotations

from typing import Any

from . import __version__

#: Ids in one request; seconds of a long poll.
MOST_IDS, LONGEST_WAIT = 100, 30.0

_ID = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


def _or_null(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **more}


_POSITION = (
    "How many jobs start before a pending one, as things are now, counted up to 1000: those of all queues that are served"
    " together with its own, as the running supervisors say, or of all queues where one takes from all or none runs. Null while"
    " it is not due."
)
_DUE_AT = "When a pending one that is not due yet may start; of all others null."
_PROPERTIES: dict[str, Any] = {
    "id": {"type": "string", "format": "uuid"},
    "state": {"enum": ["pending", "busy", "done", "failed", "cancelled"]},
    "fraction": _or_null("number", minimum=0, maximum=1, description="How far; null where nobody knows."),
    "message": _or_null("string", description="What it does now, for people."),
    "detail": {"type": "object", "description": "What the job says beside it."},
    "attempt": {"type": "integer", "minimum": 0, "description": "Number of the attempt; 0 before the first."},
    "position": _or_null("integer", minimum=0, maximum=1000, description=_POSITION),
    "due_at": _or_null("string", format="date-time", description=_DUE_AT),
    "started_at": _or_null("string", format="date-time"),
    "updated_at": _or_null("string", format="date-time"),
    "eta_seconds": _or_null("number", minimum=0, description="Time left, from `updated_at` on."),
}
_POLL_AFTER = _or_null("integer", description="Milliseconds until another look makes sense; null: never.")
_JOB = {
    "type": "object",
    "required": list(_PROPERTIES),
    "properties": {
        **_PROPERTIES,
        "error": {"type": "string", "description": "Why it failed, in words for users."},
        "user_error": {"const": True, "description": "`error` is what the task itself has said (UserError)."},
        "result_url": {"type": "string", "description": "Where the result of a job that is done is."},
        "poll_after_ms": _POLL_AFTER,
    },
    "additionalProperties": False,
}
_JOBS = {
    "type": "object",
    "required": ["jobs", "missing", "poll_after_ms"],
    "properties": {
        "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}},
        "missing": {"type": "array", "items": {"type": "string"}, "description": "Ids of no job."},
        "poll_after_ms": _POLL_AFTER,
    },
    "additionalProperties": False,
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
    "additionalProperties": False,
}
_SINCE = [
    {
        "name": "wait",
        "in": "query",
        "description": f"Answer when something has changed since `since`, or after so many seconds (at most {LONGEST_WAIT:g}). If"
        " the server has no thread to spare for it, it answers at once.",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "since",
        "in": "query",
        "description": "The ETag that is known already; its quotation marks may be left out.",
        "schema": {"type": "string", "pattern": '^(W/)?"?[0-9a-f]*"?$'},
    },
]


def _responses(schema: str, **others: str) -> dict[str, Any]:
    headers = {
        "ETag": {"schema": {"type": "string"}},
        "Cache-Control": {"schema": {"const": "no-store"}},
        "Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "required": False},
    }
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    errors = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "How it stands.", "headers": headers, "content": content},
        "304": {"description": "As `If-None-Match` says, nothing has changed.", "headers": headers},
        "400": {"description": "The question is wrong.", "content": errors},
        **{status: {"description": text, "content": errors} for status, text in others.items()},
        "503": {"description": "The database does not answer.", "content": errors},
    }


_ERRORS = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_FILE = {
    "200": {"description": "The file, to be saved.", "content": {"*/*": {}}},
    "206": {"description": "The part of it that `Range` names.", "content": {"*/*": {}}},
    "304": {"description": "As `If-None-Match` says, it has not changed."},
    "404": {"description": "There is no such file, or the sender may not see its job.", "content": _ERRORS},
    "416": {"description": "The file has no such part."},
    "503": {"description": "The database or the storage does not answer.", "content": _ERRORS},
}


def document(mount: str) -> dict[str, Any]:
    """Return the document of an endpoint that is mounted there."""
    one = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": _ID}}
    many = {
        "name": "ids",
        "in": "query",
        "required": True,
        "style": "form",
        "explode": False,
        "schema": {
            "type": "array",
            "items": {"type": "string", "pattern": _ID},
            "minItems": 1,
            "maxItems": MOST_IDS,
        },
    }
    gone = "There is no such job, or the sender may not see it."
    return {
        "openapi": "3.1.0",
        "info": {"title": "How jobs stand", "version": __version__},
        "servers": [{"url": mount}],
        "paths": {
            "/": {
                "get": {
                    "operationId": "jobs",
                    "summary": "Many jobs",
                    "parameters": [many, *_SINCE],
                    "responses": _responses("Jobs"),
                }
            },
            "/{id}": {
                "get": {
                    "operationId": "job",
                    "summary": "One job",
                    "parameters": [one, *_SINCE],
                    "responses": _responses("Job", **{"404": gone}),
                }
            },
            "/files/{token}/{name}": {
                "get": {
                    "operationId": "file",
                    "summary": "A file of a result",
                    "parameters": [
                        {
                            "name": "token",
                            "in": "path",
                            "required": True,
                            "description": "As in a `result_url`: who knows it may have the file.",
                            "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
                        },
                        {
                            "name": "name",
                            "in": "path",
                            "required": True,
                            "description": "For people; any other leads to the same file.",
                            "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.-]+$"},
                        },
                    ],
                    "responses": _FILE,
                }
            },
        },
        "components": {"schemas": {"Job": _JOB, "Jobs": _JOBS, "Error": _ERROR}},
    }
