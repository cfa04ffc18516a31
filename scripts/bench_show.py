"""How the figures of scripts/bench.py are shown."""

from __future__ import annotations

from typing import Any


def rounded(value: Any) -> Any:
    """Cut figures to what they can tell: three decimals."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, 3) if isinstance(value, float) else value


def show(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if "rounds" in figures:
        table = Table("", "PostgreSQL", "SQLite", title="forkrunner beside bare forks", title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        both = ("", "sqlite_")
        lines = [
            ("no-op jobs /s", ("postgresql_jobs_per_s", "sqlite_jobs_per_s"), ".0f"),
            ("  of the control", ("postgresql_ratio", "sqlite_ratio"), ".2f"),
            ("control's CPU, of a job's", ("postgresql_cpu_ratio", "sqlite_cpu_ratio"), ".2f"),
            *[(f"pickup p{n}, ms", [f"{p}pickup_p{n}_ms" for p in both], ".1f") for n in (50, 95, 99)],
            ("enqueue /s, one by one", [p + "enqueue_per_s" for p in both], ".0f"),
            ("enqueue /s, 1,000 at once", [p + "enqueue_many_per_s" for p in both], ".0f"),
            *[
                (f"CPU a job, ms: {part}", [f"{p}{part}_cpu_ms_per_job" for p in both], ".3f")
                for part in ("supervisor", "mold", "child", "database")
            ],
            *[
                (f"page faults a job: {part}", [f"{p}{part}_page_faults_per_job" for p in both], ".0f")
                for part in ("supervisor", "mold", "child")
            ],
        ]
        for name, keys, form in lines:
            table.add_row(name, *(format(figures[key], form) if key in figures else "" for key in keys))
        console.print(table)
        facts = figures["machine"]
        console.print(
            f"control: {figures['control_forks_per_s']:.0f} bare forks /s, median of "
            f"{len(figures['rounds']['control'])}, each {figures['control_cpu_ms_per_fork']:.2f} ms CPU and "
            f"{figures['control_page_faults_per_fork']:.0f} page faults\n"
            f"{figures['slots']} slots; target: PostgreSQL at {figures['target_postgresql_ratio']:.2f} of the control\n"
            f"idle: {figures['idle_statements_per_minute']:.1f} statements a minute on PostgreSQL, begin and commit"
            f" included (server's log, {figures['idle_seconds_watched']:.0f} s)\n"
            f"PostgreSQL {facts['postgresql']}, "
            + ", ".join(f"{k} {v}" for k, v in facts["postgresql_settings"].items())
            + f", {facts['postgresql_connection']}\n"
            f"Python {facts['python']}, Linux {facts['kernel']}, {facts['cpus']} × {facts['cpu_model']}, load "
            f"{facts['load_before']:.1f} before, {facts['load_after']:.1f} after",
            highlight=False,
        )
    if "leak" in figures:
        table = Table("resident MB at job", "supervisor", "mold", title="leaking jobs", title_justify="left")
        growth = figures["leak"].pop("growth_percent")
        for mark, sizes in figures["leak"].items():
            table.add_row(mark, *(f"{sizes[part] / 1e6:.1f}" for part in ("supervisor", "mold")))
        table.add_row("growth from 10", *(f"{growth[part]:+.1f} %" for part in ("supervisor", "mold")))
        console.print(table)
