"""Which of a pool's queued jobs start now, and where.

A state machine without I/O and clock: it is told what happens (``submit``, ``withdraw``,
``put_node``, ``remove_node``, ``started``, ``ended``), and asked to ``decide``.  What it decides it
counts as done: a grant's tasks hold their place from then on, until ``ended``.

The server and the simulator both call it.  docs/scheduling.md has the policy.  Each call costs what
it changes, whatever waits and runs; where a decision looks further, it looks at ``_LOOKAHEAD``
entries and ``nodes.LOOKAHEAD`` nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from updraft.scheduling.capacity import Node
from updraft.scheduling.claims import Claim, Claims
from updraft.scheduling.entries import Entry, Preemption, Queued
from updraft.scheduling.gangs import Room, place_gang
from updraft.scheduling.growth import Growth
from updraft.scheduling.hosts import Held, Host
from updraft.scheduling.lines import Line, Lines
from updraft.scheduling.nodes import LOOKAHEAD, Nodes
from updraft.scheduling.preemption import find_victims, gives_way
from updraft.scheduling.queue import Grant, Headroom, Headrooms, Party
from updraft.scheduling.reservation import Hold, could_start
from updraft.scheduling.shares import Fairness, Shares

Decision = Grant | Preemption

_LOOKAHEAD = 128
"""How many entries are looked at behind the first that does not fit, in the order of their turns.

Deeper is little better and costs more: on the trace that it was chosen on, the mean slowdown was
twice as high with 64, and a fortieth lower with 256."""
_SHAPES = 64
"""How many of each line that differ in what they ask for are looked at."""
_DEPTH = 256
"""How many of each line are looked at."""
_GROWN = 32
"""After how many nodes have grown it is simpler to look at all of them."""
_NO_LIMITS: Headrooms = {}


class PoolScheduler:
    """A pool's queue and nodes, and what is decided about them."""

    def __init__(self, fairness: Fairness | None = None) -> None:
        fairness = fairness or Fairness()
        self.nodes = Nodes()
        self.shares = Shares(self.nodes.total, fairness.half_life_seconds)
        self.lines = Lines(self.shares.standing, fairness.patience_seconds)
        self.hold: Hold | None = None
        """What is kept for the first that does not fit."""
        self.entries: dict[int, Queued] = {}
        self.claims = Claims(self.nodes)
        self._growth = Growth()
        self._yields = Growth()  # of what could be free if others gave way
        self._costless: dict[int, Queued] = {}
        self._decisions: list[Decision] = []
        self._redeemable: dict[int, Claim] = {}

    # -- what happens

    def submit(self, entry: Entry, now: float) -> None:
        """A job waits; one that was told already and waits again keeps its place."""
        queued = self.entries.get(entry.serial)
        if queued is None:
            queued = self.entries[entry.serial] = Queued(entry, entry.count, shape=entry.shape)
        else:
            self._leave_line(queued, now)
            queued.entry, queued.left, queued.looked = entry, entry.count, -1
            queued.shape = entry.shape
        self._queue(queued, now)

    def withdraw(self, serial: int, now: float) -> None:
        """What of a job has not started waits no more; what runs goes on."""
        queued = self.entries.get(serial)
        if queued is None:
            return
        for claim in self.claims.of(queued):
            self._drop_claim(claim, now)
        self._leave_line(queued, now)
        queued.left = 0
        self._forget_done(queued)

    def put_node(self, node: Node, now: float) -> None:
        """A node takes tasks, or has changed; ``node.free`` is all that it gives to tasks."""
        host = self.nodes.put(node)
        self._grown(host, now)
        self._unsettle()

    def remove_node(self, name: str, now: float) -> None:
        """A node takes no tasks any more; those that it has go on until ``ended``."""
        for claim in self.claims.on(name):
            self._drop_claim(claim, now)
            self._queue(claim.queued, now)
        self.nodes.close(name)
        self._unsettle()

    def started(self, entry: Entry, grant: Grant, now: float) -> None:
        """Tasks run that were not granted here: from before a restart, or by another's decision.

        ``now``: since when they run.
        """
        queued = self.entries.get(entry.serial)
        if queued is None:
            queued = self.entries[entry.serial] = Queued(entry, 0, shape=entry.shape)
        self.nodes.adopt(grant.node, queued, grant.tasks, grant.gpus, now)
        self._count_start(queued, grant.node, grant.tasks)
        self._charge(queued, grant.tasks, now)
        self._unsettle()

    def ended(self, grant: Grant, now: float, *, again: bool = False) -> None:
        """Tasks have ended, all that a grant names or so many of them; ``again``: they wait again.

        Of a gang that has ended, each grant is told.  Tasks that are not known are passed over.
        """
        host = self.nodes.hosts.get(grant.node)
        held = None if host is None else host.held.get(grant.serial)
        if host is None or held is None:
            return
        queued, tasks = held.queued, min(grant.tasks, held.tasks)
        self.nodes.give_back(host, held, tasks, grant.gpus)
        queued.running -= tasks
        if queued.entry.gang and grant.node in queued.nodes:
            queued.nodes.remove(grant.node)
        self._charge(queued, -tasks, now)
        self._grown(host, now)
        if again:
            queued.left += tasks
        if queued.left:
            self._queue(queued, now)
        self._forget_done(queued)

    # -- what to do

    def decide(self, now: float, headrooms: Headrooms | None = None) -> list[Decision]:
        """Return what starts now, and which tasks are to make room for what starts next.

        All grants of a gang follow each other.  ``headrooms``: what projects and users may still
        start; who is not in it has no limits.  They are changed.
        """
        self._decisions = []
        limits = headrooms or _NO_LIMITS
        if limits:
            for claim in self.claims.all():
                for each in self._most(claim.queued.entry.party, limits):
                    each.take(claim.queued.entry.need, claim.tasks)
        for claim in list(self._redeemable.values()):
            self._redeem(claim, now)
        self._redeemable.clear()
        for queued in list(self._costless.values()):
            self._start_costless(queued, limits, now)
        if self.lines.refresh(now):
            self.shares.forget(now)
            if self.hold is not None and self.hold.queued.entry.gang:
                self._unsettle()  # tasks that ended early may have made it earlier
        while self._step(limits, now):
            pass
        return self._decisions

    def _step(self, limits: Headrooms, now: float) -> bool:
        """Start, or make room for, the first that can; return whether there was one."""
        looked, mark = 0, self._growth.mark
        hold: Hold | None = None
        for line in self.lines:
            most = self._most(line.party, limits)
            refused: set[tuple[float | None, ...]] = set()
            for queued in self._in_turn(line):
                if queued.shape in refused:
                    continue
                if len(refused) == _SHAPES:
                    break
                entry = queued.entry
                limited = [] if entry.beside else most
                if limited and any(each.lacks(entry.need, _together(entry)) for each in limited):
                    break  # only its own party's limit keeps it waiting
                # What gives way to it anyway keeps it from nothing.
                bars = None if hold is None or gives_way(hold.queued.entry, entry) else hold
                if queued.looked == mark and (bars is not None or not queued.behind):
                    started = 0  # nothing has changed since its last look
                else:
                    started = self._try(queued, line, bars, (limited, now))
                if not started and bars is None:
                    started = self._preempt(queued, now)
                if started:
                    for each in most:
                        each.take(entry.need, started)
                    return True
                if bars is None:
                    former = self.hold
                    hold = self._hold_for(queued, now) or hold
                    if self.hold is not former:
                        return True  # lines have moved
                looked += hold is not None  # else no runner that is there could ever take it
                if looked == _LOOKAHEAD:
                    return False
                refused.add(queued.shape)
        return False

    def _in_turn(self, line: Line) -> Sequence[Queued]:
        """Return the first of a line; of equal priority, whoever holds the reservation first."""
        found = line.items[:_DEPTH]
        hold = None if self.hold is None else self.hold.queued
        if hold is not None and hold.entry.party == line.party and found[0] is not hold:
            # An array before it may have been at its limit of parallel tasks.
            return sorted(
                {*found, hold},
                key=lambda each: (-each.entry.priority, each is not hold, each.entry.serial),
            )
        return found

    def _try(
        self,
        queued: Queued,
        line: Line,
        hold: Hold | None,
        rest: tuple[list[Headroom], float],
    ) -> int:
        """Start tasks of an entry where no reservation needs the room; return how many."""
        most, now = rest
        entry = queued.entry

        def room(host: Host) -> int:
            if hold is None:
                return host.room(entry.need)
            if not host.room(entry.need):
                return 0
            hold.settle(self.nodes, now)
            return hold.room(host, entry, now)

        if entry.gang:
            parts = self._place_gang(queued, room, hold)
            if not parts:
                return 0
            for name, tasks in parts.items():
                self._start(queued, self.nodes.hosts[name], tasks, now)
        else:
            parts = {}
            turn = min(queued.room, self._turn(line, entry), *(e.most(entry.need) for e in most))
            while turn and (host := self._place_one(queued, room, hold)) is not None:
                tasks = min(room(host), turn)
                self._start(queued, host, tasks, now)
                parts[host.name] = tasks
                turn -= tasks
            if not parts:
                return 0
        if hold is None and self.hold is not None and not self.hold.parts.keys().isdisjoint(parts):
            self._unsettle()  # who goes before it has taken some of its place
        self._after_start(queued, now)
        return sum(parts.values())

    def _place_one(self, queued: Queued, room: Room, hold: Hold | None) -> Host | None:
        """Return where a task fits; looks at those nodes only that it has not looked at."""
        entry, owner = queued.entry, queued.entry.party.owner
        grown = self._grown_since(queued, hold, _GROWN)
        if grown is None:
            accept = None if hold is None else lambda host: room(host) > 0
            found = self.nodes.fullest(entry.need, owner, accept)
        else:
            fitting = [
                host
                for name in grown
                if (host := self.nodes.hosts.get(name)) is not None
                and host.takes(owner)
                and room(host) > 0
            ]
            found = min(fitting, key=_fullness, default=None)
        queued.looked = self._growth.mark if found is None else -1
        queued.behind = hold is not None
        return found

    def _grown_since(self, queued: Queued, hold: Hold | None, most: int) -> Sequence[str] | None:
        """Return which nodes an entry has to look at; None: all."""
        if queued.looked < 0 or (queued.behind and hold is None):
            return None
        return self._growth.since(queued.looked, most)

    def _place_gang(self, queued: Queued, room: Room, hold: Hold | None) -> dict[str, int]:
        """Return which nodes get how many of a gang's ranks; empty: they do not fit."""
        entry, owner = queued.entry, queued.entry.party.owner
        grown = self._grown_since(queued, hold, LOOKAHEAD * 4)
        if grown is not None:
            hosts = (self.nodes.hosts.get(name) for name in grown)
            gain = sum(room(host) for host in hosts if host is not None and host.takes(owner))
            queued.short -= gain
            if queued.short > 0:
                queued.looked = self._growth.mark
                return {}
        parts, queued.short = place_gang(self.nodes, entry, room)
        queued.looked = -1 if parts else self._growth.mark
        queued.behind = hold is not None
        return parts

    def _turn(self, line: Line, entry: Entry) -> int:
        """Return how many tasks a line may start before another's turn comes; at least one."""
        after = self.lines.after(line)
        key = line.key
        if entry.count == 1 or key is None or after is None or after.key is None:
            return entry.count
        share = self.shares.of_task(entry.need)
        if after.key[:2] != key[:2] or not share:
            return entry.count if after.key[0] != key[0] else 1
        return 1 + int(max(after.key[2] - key[2], 0.0) / share)

    # -- starting

    def _start(self, queued: Queued, host: Host, tasks: int, now: float) -> None:
        gpus = self.nodes.take(host, queued, tasks, now)
        queued.left -= tasks
        self._count_start(queued, host.name, tasks)
        need = queued.entry.need
        if queued.entry.preemptible:
            self._yields.note(host.name)
        self._decisions.append(Grant(queued.entry.serial, host.name, need, gpus, tasks))
        self._charge(queued, tasks, now)

    def _after_start(self, queued: Queued, now: float) -> None:
        if self.hold is not None and self.hold.queued is queued:
            self._release_hold(now)
        if not queued.ready:
            self._leave_line(queued, now)
        party = queued.entry.party
        self.lines.served(party, now)
        self.lines.moved(party.owner, now)

    def _start_costless(self, queued: Queued, limits: Headrooms, now: float) -> None:
        entry = queued.entry
        most = [] if entry.beside else self._most(entry.party, limits)
        host = next(self.nodes.emptiest(entry.party.owner), None)
        if host is None or any(each.lacks(entry.need) for each in most):
            return
        for each in most:
            each.take(entry.need)
        del self._costless[entry.serial]
        self._start(queued, host, 1, now)

    def _count_start(self, queued: Queued, node: str, tasks: int) -> None:
        queued.running += tasks
        if queued.entry.gang and node not in queued.nodes:
            queued.nodes.append(node)

    def _charge(self, queued: Queued, tasks: int, now: float) -> None:
        entry = queued.entry
        self.shares.change(entry.party.owner, entry.need, tasks, now)
        if tasks < 0:
            self.lines.moved(entry.party.owner, now)

    # -- reservations

    def _hold_for(self, queued: Queued, now: float) -> Hold | None:
        """Return the reservation of the first that does not fit; None: it cannot have one."""
        if self.hold is not None:
            if self.hold.queued is queued:
                return self.hold
            if gives_way(queued.entry, self.hold.queued.entry):
                return None  # its place would be taken from it
            if not could_start(self.nodes, queued.entry):
                return None
            self._release_hold(now)  # a higher priority came
        elif not could_start(self.nodes, queued.entry):
            return None
        self.hold = Hold(queued)
        self.lines.hold(queued, now)
        return self.hold

    def _release_hold(self, now: float) -> None:
        self._unsettle()
        self.hold = None
        self.lines.hold(None, now)

    def _unsettle(self) -> None:
        """What is kept is kept no more, and has to be found anew."""
        if self.hold is not None and self.hold.settled:
            self.hold.settled = False
            self._note_kept(self.hold.parts)

    def _note_kept(self, parts: dict[str, int]) -> None:
        if not parts:
            self._growth.note_all()
        for name in parts:
            self._growth.note(name)

    def _grown(self, host: Host, now: float) -> None:
        """More is free on a node."""
        self._growth.note(host.name)
        self._yields.note(host.name)
        for claim in self.claims.on(host.name):
            self._redeemable[id(claim)] = claim
        hold = self.hold
        if hold is not None:
            kept = hold.parts
            if hold.hasten(host, now):
                self._note_kept(kept)

    # -- giving way

    def _preempt(self, queued: Queued, now: float) -> int:
        """Let others make room for a task of an entry, or for a gang; return for how many."""
        entry = queued.entry
        if not self.nodes.preemptible:
            return 0
        changed = self._yields.since(queued.asked, _GROWN) if queued.asked >= 0 else None
        queued.asked = self._yields.mark
        if changed is not None and not changed:
            return 0
        victims = find_victims(self.nodes, entry, changed)
        if victims is None:
            return 0
        stopped: dict[tuple[int, str], tuple[Host, Held, int]] = {}
        for host, held, tasks in victims.held:
            key = (held.queued.entry.serial, host.name)
            before = stopped[key][2] if key in stopped else 0
            stopped[key] = (host, held, before + tasks)
        for (serial, node), (host, held, tasks) in stopped.items():
            self.nodes.stop(host, held, tasks)
            self._decisions.append(Preemption(serial, node, tasks, entry.serial))
        claim = Claim(queued, victims.parts)
        self.claims.make(claim)
        self._charge(queued, claim.tasks, now)
        self._after_start(queued, now)
        queued.asked = -1
        return claim.tasks

    def _redeem(self, claim: Claim, now: float) -> None:
        """Start what was promised a place, once others have left it."""
        queued = claim.queued
        if claim not in self.claims.of(queued) or not self.claims.is_free(claim):
            return
        self.claims.drop(claim)
        self.shares.change(queued.entry.party.owner, queued.entry.need, -claim.tasks, now)
        for name, tasks in claim.parts.items():
            self._start(queued, self.nodes.hosts[name], tasks, now)
        self.lines.moved(queued.entry.party.owner, now)

    def _drop_claim(self, claim: Claim, now: float) -> None:
        self.claims.drop(claim)
        self._charge(claim.queued, -claim.tasks, now)
        for name in claim.parts:
            self._growth.note(name)

    # -- in line

    def _queue(self, queued: Queued, now: float) -> None:
        if queued.entry.costless:
            if queued.left:
                self._costless[queued.entry.serial] = queued
        elif queued.ready:
            self.lines.push(queued, now)

    def _leave_line(self, queued: Queued, now: float) -> None:
        self._costless.pop(queued.entry.serial, None)
        if self.hold is not None and self.hold.queued is queued:
            self._release_hold(now)
        self.lines.discard(queued, now)

    def _forget_done(self, queued: Queued) -> None:
        if not queued.left and not queued.running and not queued.claimed:
            self.entries.pop(queued.entry.serial, None)

    @staticmethod
    def _most(party: Party, limits: Headrooms) -> list[Headroom]:
        if not limits:
            return []
        found: Iterable[Headroom | None] = (limits.get(party.project), limits.get(party))
        return [each for each in found if each is not None]


def _together(entry: Entry) -> int:
    """Return how many tasks of an entry start at least."""
    return entry.count if entry.gang else 1


def _fullness(host: Host) -> tuple[int, int, int, str]:
    return (host.gpus, host.cpus_milli, host.memory_bytes, host.name)
