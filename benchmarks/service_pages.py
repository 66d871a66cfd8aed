"""What benchmarks/service.py found, as pages: the goals and whether they were met, and the sizing table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

GOAL_SHARE = 0.85  # of the scorer's own rate
FLAT = 0.10  # memory may grow by this share from the second fifth of the run to its last
BEGIN, END = "<!-- sizing:begin -->", "<!-- sizing:end -->"


def goals(made: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """What was asked, what came, whether that is met; of the parts that were run."""
    for name, run in made.get("node", {}).items():
        lost, twice = run["lost"], run["twice"]
        yield f"{name}: every instance in exactly one report", f"{lost} lost, {twice} told twice", lost == twice == 0
        growth = run["memory"].get("growth")
        if growth is not None:
            yield (
                f"{name}: memory flat (at most {FLAT:+.0%} from the second fifth to the last)",
                f"{growth:+.1%}",
                growth <= FLAT,
            )
        share = run["share"]
        yield f"{name}: at least {GOAL_SHARE:.0%} of the scorer's own rate", f"{share:.0%}", share >= GOAL_SHARE
        yield f"{name}: nothing of a patient in log and queue", ", ".join(run["leaks"]) or "nothing", not run["leaks"]
    if run := made.get("http"):
        yield (
            "HTTP: no 5xx, no broken answer",
            f"{run['server_errors']} and {run['broken']}",
            run["server_errors"] == run["broken"] == 0,
        )
        refused, unnamed = run["statuses"].get("429", 0), run["refused_without_retry_after"]
        yield "HTTP: past the limit 429 with Retry-After", f"{refused}, {unnamed} without", refused > 0 and unnamed == 0
        growth = run["memory"].get("growth")
        if growth is not None:
            yield f"HTTP: memory flat (at most {FLAT:+.0%})", f"{growth:+.1%}", growth <= FLAT
        yield (
            "HTTP: stops in order and leaves no file",
            f"exit code {run['exit_code']}, {run['files_left']} left",
            (run["exit_code"] == 0 and run["files_left"] == 0),
        )
        yield "HTTP: nothing of a patient in the log", ", ".join(run["leaks"]) or "nothing", not run["leaks"]
    if made.get("attacks"):
        failed = [
            f"{each['on']}: {each['attack']}" for each in made["attacks"] if not (each["refused"] and each["alive"])
        ]
        yield "attacks refused, service alive", "; ".join(failed) or f"all {len(made['attacks'])}", not failed


def markdown(made: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [f"# The services under load and attack\n\nMade by `{made['command']}`; do not edit.\n"]
    lines += ["| goal | found | |", "| --- | --- | --- |"]
    lines += [f"| {goal} | {found} | {'met' if met else '**missed**'} |" for goal, found, met in goals(made)]
    if made.get("node"):
        lines += ["\n## Node\n", "| | " + " | ".join(made["node"]) + " |", "| --- |" + " ---: |" * len(made["node"])]
        rows = {
            "instances (pictures in them)": lambda r: f"{r['instances']} ({r['frames']})",
            "MB": lambda r: f"{r['megabytes']:.0f}",
            "scoring processes": lambda r: f"{r['workers']}",
            "s to send them": lambda r: f"{r['sent_seconds']:.1f}",
            "put off (0xA700), sent again": lambda r: f"{r['put_off']}",
            "s from the first sent to the last reported": lambda r: f"{r['seconds']:.1f}",
            "reports": lambda r: f"{r['reports']}",
            "instances a second": lambda r: f"{r['rate']:.2f}",
            "the scorer's own": lambda r: f"{r['own_rate']:.2f}",
            "resident MB, median of each fifth of the run": lambda r: fifths(r["memory"]),
            "most resident MB": lambda r: f"{r['memory']['peak_mb']:.0f}",
            "s to stop": lambda r: f"{r['stopped_seconds']:.1f}",
        }
        lines += [
            f"| {name} | " + " | ".join(told(run) for run in made["node"].values()) + " |"
            for name, told in rows.items()
        ]
    if run := made.get("http"):
        statuses = ", ".join(f"{count} × {status}" for status, count in run["statuses"].items())
        lines.append(
            f"\n## HTTP\n\n{run['clients']} clients, {run['seconds']:.0f} s, {run['workers']} scoring processes, "
            f"{run['queue']} requests let in at a time: {statuses}. {run['scored_a_second']:.1f} files scored a "
            f"second; those answered took {seconds(run['p50'])} in the median, and 99 % of them at most "
            f"{seconds(run['p99'])}. Resident MB, median of each fifth of the run: {fifths(run['memory'])}; at most "
            f"{run['memory']['peak_mb']:.0f}. Stopped in {run['stopped_seconds']:.1f} s."
        )
    if made.get("attacks"):
        lines += ["\n## Attacks\n", "Alive: an honest request right after it was answered.\n"]
        lines += ["| on | sent | wanted | came | MB more at most | |", "| --- | --- | --- | --- | ---: | --- |"]
        for each in made["attacks"]:
            verdict = "refused" if each["refused"] else "**not refused**"
            verdict += ", alive" if each["alive"] else ", **not alive**"
            cells = (each["on"], each["attack"], each["wanted"], each["came"], f"{each['added_mb']:.0f}", verdict)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    load = f"Load of the machine before: {made['load']:.1f} on {made['cores']} cores."
    lines += [f"\n{made['cpu']}, Python {made['python']}; commit {made['commit'][:12]}, {made['made'][:10]}. {load}"]
    if made["quick"]:
        lines.append("**A short run: too short for the numbers to mean much.**")
    return "\n".join(lines) + "\n"


def fifths(measured: dict[str, float]) -> str:
    """The memory over time in one cell."""
    return ", ".join(f"{measured[f'fifth_{n}_mb']:.0f}" for n in range(1, 6)) if "growth" in measured else "too short"


def seconds(value: float | None) -> str:
    """Seconds, where there are any."""
    return "not seen" if value is None else f"{value:.2f} s"


def sizing(made: dict[str, Any]) -> str:
    """The table of docs/deploy.md: what a core does in a minute, and how much memory that takes."""
    lines = ["| what | images a minute and core | resident MB at most |", "| --- | ---: | ---: |"]
    for name, run in made["node"].items():
        per_core = 60 * run["frames"] / run["seconds"] / run["workers"]
        lines.append(f"| node: {name} | {per_core:.0f} | {run['memory']['peak_mb']:.0f} with {run['workers']} |")
    run = made["http"]
    per_core, most = 60 * run["scored_a_second"] / run["workers"], run["memory"]["peak_mb"]
    lines.append(
        f"| HTTP: small pictures, {run['clients']} clients | {per_core:.0f} | {most:.0f} with {run['workers']} |"
    )
    lines.append(f"\nMeasured on {made['cpu']}, {made['cores']} cores, by `{made['command']}`, {made['made'][:10]}.")
    return "\n".join(lines)


def put_sizing(page: str, made: dict[str, Any]) -> str:
    """The page with the table anew."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{sizing(made)}\n{END}{tail}"
