"""Flows: graphs of steps that are submitted together, looked at, cancelled and restored as one.

A flow is what a label groups: its jobs have ``flow=ID`` and ``step=NAME``.  Its id makes the keys
of its jobs, so that submitting it twice is one flow.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from updraft import errors
from updraft.model.dependencies import On
from updraft.model.flow import Fate, Flow, Step, not_needed, read_flow, to_restore
from updraft.model.job import new_job_id
from updraft.model.states import State
from updraft.sdk.submission import environment_block
from updraft.wire.schemas import After, JobSummary, RerunRequest, SubmitRequest

if TYPE_CHECKING:
    from updraft.sdk.client import Client

_FLOW, _STEP, _NAME, _RESTORES = "flow", "step", "flow-name", "flow-restores"
_LOOK_SECONDS = 1.0
_MOST_LOOKED_AT = 5000
_BROKEN_OFF = (errors.ServerLost, errors.NotReady, errors.Unavailable)


@dataclass(frozen=True, slots=True)
class StepState:
    """A step and its job."""

    name: str
    job: JobSummary
    needs: Mapping[str, On]
    skipped: bool
    """Whether it never ran since it was there for a failure that was none."""


@dataclass(frozen=True, slots=True)
class FlowState:
    """A flow as it is: its steps in an order in which each comes after those that it needs."""

    id: str
    name: str
    restores: str | None
    """The flow of which it runs again what was not ok."""
    steps: tuple[StepState, ...]

    @property
    def ended(self) -> bool:
        """Whether all its steps have."""
        return all(step.job.state.terminal for step in self.steps)

    @property
    def ok(self) -> bool:
        """Whether all its steps ended ok, but those that were there for failures."""
        return all(step.job.ok or step.skipped for step in self.steps)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "id": self.id,
            "name": self.name,
            "restores": self.restores,
            "ended": self.ended,
            "ok": self.ok if self.ended else None,
            "steps": [
                {
                    "name": step.name,
                    "needs": dict(step.needs),
                    "skipped": step.skipped,
                    "job": step.job.model_dump(mode="json"),
                }
                for step in self.steps
            ],
        }


def load(path: str, pools: Collection[str] | None) -> tuple[Flow | None, list[str]]:
    """Return the flow in a YAML file, or else what is wrong with it, a line each.

    Raises ``errors.BadRequest`` where there is no such file, or it is no YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise errors.BadRequest(f"{path}: {said}") from error
    except yaml.MarkedYAMLError as error:
        at = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}:"
        raise errors.BadRequest(f"{path}:{at} {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise errors.BadRequest(f"{path}: it cannot be read as YAML") from error
    return read_flow(document, pools)


def submit(client: Client, flow: Flow, flow_id: str | None = None, *, elsewhere: bool) -> str:
    """Submit all steps, and return the flow's id.

    ``flow_id``: of a flow whose submission broke off, to go on with it.  ``elsewhere``: the server
    is another machine, which may not have the current directory.  Where a step is refused, those
    before it are cancelled.
    """
    flow_id = flow_id or new_job_id()
    labels = {_FLOW: flow_id, **({_NAME: flow.name} if flow.name else {})}
    here, umask = str(Path.cwd()), os.umask(0o077)
    os.umask(umask)
    environment = {name: value for name, value in os.environ.items() if _is_text(name + value)}
    jobs: dict[str, str] = {}
    for number, step in enumerate(flow.steps):
        directory = here if step.directory is None else str(Path(here, step.directory))
        request = SubmitRequest(
            key=f"{flow_id}-{number}",
            argv=list(step.command),
            directory=directory,
            fallback_directory=elsewhere and step.directory is None,
            environment={**environment, "PWD": directory},
            set_environment=dict(step.env),
            name=step.name,
            labels={**labels, _STEP: step.name},
            umask=umask,
            after=[After(job=jobs[name], on=on) for name, on in step.needs.items()],
            **_resources(step),
        )
        try:
            jobs[step.name] = client.submit(request).id
        except errors.UpdraftError as error:
            raise _refused(client, flow_id, step.name, error, jobs) from error
    return flow_id


def look(client: Client, flow_id: str) -> FlowState:
    """Return a flow as it is.  Raises ``errors.NotFound``."""
    jobs = list(client.jobs(labels={_FLOW: flow_id}))[::-1]
    if not jobs:
        raise errors.NotFound(f"there is no flow {flow_id!r}; see: updraft flow list")
    return _state(flow_id, jobs)


def follow(client: Client, flow_id: str) -> Iterator[FlowState]:
    """Yield a flow whenever a step may have moved, to its end."""
    while True:
        state = look(client, flow_id)
        yield state
        live = [step.job for step in state.steps if not step.job.state.terminal]
        if not live:
            return
        chosen = next((job for job in live if job.state is State.RUNNING), live[0])
        began = time.monotonic()
        if not client.wait(chosen.id, _LOOK_SECONDS).state.terminal:
            time.sleep(max(0.0, _LOOK_SECONDS / 4 - (time.monotonic() - began)))


def flows(client: Client, most: int) -> list[FlowState]:
    """Return the newest flows, looking through the newest jobs only."""
    found: dict[str, list[JobSummary]] = {}
    for job in client.jobs(limit=_MOST_LOOKED_AT):
        if flow_id := job.labels.get(_FLOW):
            if flow_id not in found and len(found) == most:
                break
            found.setdefault(flow_id, []).append(job)
    return [_state(flow_id, jobs[::-1]) for flow_id, jobs in found.items()]


def cancel(client: Client, flow_id: str) -> int:
    """Cancel what has not ended of a flow; return how many steps that was."""
    state = look(client, flow_id)
    cancelled = 0
    # Last first: nothing is to start since what it waited for was cancelled.
    for step in reversed(state.steps):
        if not step.job.state.terminal:
            try:
                client.cancel(step.job.id)
                cancelled += 1
            except errors.Conflict:
                continue  # it has ended meanwhile
    return cancelled


def restore(client: Client, flow_id: str, new_id: str | None = None) -> str:
    """Run again what did not end ok in a flow, and what depends on that; return the new flow's id.

    Raises ``errors.Conflict`` where the flow has not ended, or all of it is ok.
    """
    old = look(client, flow_id)
    if not old.ended:
        raise errors.Conflict(
            f"flow {flow_id} has not ended; to end it: updraft flow cancel {flow_id}"
        )
    steps = {step.name: step for step in old.steps}
    again = to_restore({name: step.needs for name, step in steps.items()}, _fates(old.steps))
    if not again:
        raise errors.Conflict(f"all steps of flow {flow_id} are ok; nothing is to be run again")
    new_id = new_id or new_job_id()
    labels = {_FLOW: new_id, _RESTORES: flow_id, **({_NAME: old.name} if old.name else {})}
    environment = base64.b64encode(environment_block([])).decode()
    jobs: dict[str, str] = {}
    for number, name in enumerate(again):
        job, needs = steps[name].job, steps[name].needs
        part = job.kind == "array" and not job.ok and job.times.started is not None
        request = RerunRequest(
            key=f"{new_id}-{number}",
            failed=part and not any(each in jobs for each in needs),
            after=[
                After(job=jobs.get(each, steps[each].job.id), on=on)
                for each, on in needs.items()
                if each in jobs or not _is_met(steps[each], on)
            ],
            labels={**labels, _STEP: name},
            environment_base64=environment,
        )
        try:
            jobs[name] = client.rerun(job.id, request).id
        except errors.UpdraftError as error:
            raise _refused(client, new_id, name, error, jobs) from error
    return new_id


def _is_met(step: StepState, on: On) -> bool:
    return on is On.ANY or (on is On.OK) is bool(step.job.ok)


def _state(flow_id: str, jobs: list[JobSummary]) -> FlowState:
    """Return the flow of these jobs, the oldest one first; a step that was rerun is its last."""
    names = {job.id: job.labels.get(_STEP, job.id) for job in jobs}
    needs: dict[str, dict[str, On]] = {}
    last: dict[str, JobSummary] = {}
    for job in jobs:
        name = names[job.id]
        edges = {names[each.job]: each.on for each in job.after if each.job in names}
        needs.setdefault(name, edges)
        last[name] = job
    fates = {name: _fate(job) for name, job in last.items()}
    skipped = not_needed(needs, fates)
    return FlowState(
        flow_id,
        jobs[0].labels.get(_NAME, ""),
        jobs[0].labels.get(_RESTORES),
        tuple(StepState(name, job, needs[name], name in skipped) for name, job in last.items()),
    )


def _fates(steps: tuple[StepState, ...]) -> dict[str, Fate]:
    return {step.name: _fate(step.job) for step in steps}


def _fate(job: JobSummary) -> Fate:
    return Fate(job.ok, job.times.started is not None)


def _resources(step: Step) -> dict[str, Any]:
    return {
        "pool": step.pool,
        "cpus": step.cpus_milli / 1000,
        "memory_bytes": step.memory_bytes,
        "gpus": step.gpus,
        "time_limit_seconds": step.time_seconds,
        "retries": step.retries,
        **({} if step.array is None else {"kind": "array", "tasks": step.array}),
    }


def _refused(
    client: Client, flow_id: str, step: str, error: errors.UpdraftError, jobs: Mapping[str, str]
) -> errors.UpdraftError:
    """Return what to say of a step that was not taken, once those before it are cancelled."""
    if isinstance(error, _BROKEN_OFF):
        said = f"flow {flow_id} broke off at step {step}: {error.message}; to go on with it, give"
        return errors.from_code(error.code, f"{said} --id {flow_id}")
    for job in list(jobs.values())[::-1]:
        try:
            client.cancel(job)
        except errors.UpdraftError:
            continue  # it has ended
    return errors.from_code(error.code, f"step {step}: {error.message}; the flow was given up")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses what would be passed over in silence: a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]
