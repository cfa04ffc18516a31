"""Everything forkrunner raises.

ForkrunnerError
├── ConfigError            .name .value .source   a setting, a target or an option is wrong
├── TargetError            .target                the application does not import or names no Runner
├── EnqueueError           .task                  a call that cannot become a job
│   ├── TaskNotFound       .name
│   └── ArgumentError      .argument              arguments that do not fit the task
├── JobNotFound            .id
├── JobStateError          .id .state             a cancel or retry that the state does not allow
├── CursorError                                   safe_point(cursor): not JSON, or too large
├── FileError              .file                  a file that cannot be taken: too large, changed meanwhile, no file
├── StorageError           .place                 where files are kept does not answer, or refuses
│   └── FileMissing        .sha256                and there it is not
├── HandoverError                                 a supervisor cannot take over from the one before it
├── MailError                                     mail could not be sent now; later it may
│   └── MailRefused                               … and another try would be refused alike
│       └── MailTooLarge       .limit             … but not a smaller mail
├── WaitTimeout            .id .state             Job.wait(timeout=…) ran out
└── StoreError                                    the database said no
    ├── StoreUnavailable       .busy              away, silent, locked: the same call may work later
    └── SchemaError                               tables are missing, older or newer than this release

Exception
└── UserError                                     not raised by forkrunner: what a task says to who waits for it

BaseException
└── LeaveJob                                      not an error: how safe_point leaves a task

A message says what was expected, what was got and where it came from; the facts
are attributes. A class's docstring is its message when none is given.
"""

from __future__ import annotations


class ForkrunnerError(Exception):
    """forkrunner could not do what was asked."""

    def __init__(self, message: str | None = None, **facts: object) -> None:
        super().__init__(message or type(self).__doc__)
        self.facts = facts
        self.__dict__.update(facts)


class ConfigError(ForkrunnerError):
    """A setting has a value that it cannot have."""


class TargetError(ForkrunnerError):
    """The application could not be imported."""


class EnqueueError(ForkrunnerError):
    """This call cannot become a job."""


class TaskNotFound(EnqueueError):
    """No task has this name."""


class ArgumentError(EnqueueError):
    """The arguments do not fit the task."""


class JobNotFound(ForkrunnerError):
    """There is no such job."""


class JobStateError(ForkrunnerError):
    """The state of the job does not allow this."""


class CursorError(ForkrunnerError):
    """The cursor of a safe point is not JSON, or too large."""


class FileError(ForkrunnerError):
    """This file cannot be taken."""


class StorageError(ForkrunnerError):
    """The storage of files does not answer, or refuses."""


class FileMissing(StorageError):
    """The storage does not have this file."""


class HandoverError(ForkrunnerError):
    """This supervisor cannot take over from the one before it."""


class MailError(ForkrunnerError):
    """The mail could not be sent now."""


class MailRefused(MailError):
    """The mail server will not take this mail."""


class MailTooLarge(MailRefused):
    """The mail is larger than the mail server takes."""

    #: Bytes, where the server says it.
    limit: int | None = None


class WaitTimeout(ForkrunnerError):
    """The job did not end in time."""


class StoreError(ForkrunnerError):
    """The database refused."""


class StoreUnavailable(StoreError):
    """The database does not answer; the same call may work later."""

    #: An SQLite file is locked by another process: over in a moment, and nothing was begun.
    busy = False


class SchemaError(StoreError):
    """The tables are missing, older or newer than this release needs."""


class UserError(Exception):
    """What a task raises to tell whoever waits for it, in words for them: "This is no tracking file".

    Its text, and that of subclasses, reaches the progress endpoint as it is, up to 2,000 bytes of it; of all other
    exceptions a user of the web site gets a neutral sentence. The job is failed at once, without another try, unless the
    task's `retry_for` names UserError or a subclass.
    """


class LeaveJob(BaseException):
    """A job leaves at a safe point.

    Not an Exception, like SystemExit: `except Exception` in a task must not keep the job from leaving. Whoever
    catches it to tidy up raises it again; a task that does not is asked again at its next safe point. In a group of
    exceptions, as asyncio.TaskGroup makes one, it counts as by itself, unless there is an error beside it.
    """

    def __init__(self, message: str, outcome: str = "requeued", cursor: str | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        #: JSON text; None: the row keeps what it has.
        self.cursor = cursor
