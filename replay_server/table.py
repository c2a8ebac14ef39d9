"""A table in memory: which steps it holds, whose they are, what is known, what is drawn; one thread at a time."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.block import Block, Record
from replay_server.episode_seeds import EpisodeSeeds
from replay_server.errors import Refusal
from replay_server.items import Items
from replay_server.priorities import Priorities
from replay_server.removers import REMOVERS
from replay_server.ring import ColumnRings
from replay_server.selectors import Draw
from replay_server.slots import BYTES_PER_SLOT, Slots, Walk
from replay_server.stored import KnownTrajectories, Removed, Stored, StoredChunk
from zero.tables import EpisodeEnd, SequenceRule, TableConfig
from zero.trajectories import ColumnUpdates, NStep, PriorityUpdates, SampleSpec, StepFilter, TrajectoryFilter
from zero.wire.codec import Reason, row_bytes

_SELECTOR_BYTES_PER_SLOT = 24
_BYTES_BESIDE_COLUMNS = 64  # of a drawn row: key, probability, length, version, weight, flags
_ITEM_BYTES_PER_SLOT = 1 + 4 + 8  # whether it is one, its priority, how often it was drawn or whose it is


class Placement(NamedTuple):
    """Where a block is going to live.

    Attributes:
        ordinal: of its first chunk; the others follow.
        slots: int32 [steps of the block].
        stored_at: Unix time.
    """

    ordinal: int
    slots: NDArray[np.int32]
    stored_at: float


class Updated(NamedTuple):
    """What became of new values, in steps.

    Attributes:
        updated: replaced.
        evicted: no longer stored.
        outdated: that hold a greater version.
    """

    updated: int
    evicted: int
    outdated: int


class Drawn(NamedTuple):
    """A drawn batch before its columns are gathered.

    Attributes:
        walk: the sequences, as far as the windows reach.
        keys: uint64 [B].
        probabilities: float64 [B].
        weights_versions: uint64 [B].
        table_size: items at the time of drawing.
        mean_age_seconds: since the drawn steps were stored.
    """

    walk: Walk
    keys: NDArray[np.uint64]
    probabilities: NDArray[np.float64]
    weights_versions: NDArray[np.uint64]
    table_size: int
    mean_age_seconds: float


def memory_of(config: TableConfig) -> int:
    """Bytes that a table takes when it is full, besides what it remembers per trajectory."""
    columns = sum(row_bytes(spec) for spec in config.signature)
    return config.capacity * (columns + BYTES_PER_SLOT + _SELECTOR_BYTES_PER_SLOT + _ITEM_BYTES_PER_SLOT)


class Table:
    """Steps in slots, linked into trajectories; items are the steps that may be drawn.

    A key is generation << 32 | slot, where the generation says with which chunk the step came, so it names one step for
    ever.

    Attributes:
        config: what the table is.
        rings: the columns.
        priorities: by slot.
        has_priorities: whether they make a difference.
        num_steps: stored now.
        first_ordinal: of the first chunk that ever came; what is smaller is of an earlier table of that name.
        next_ordinal: of the next chunk.
        inserted_steps: ever.
        inserted_trajectories: ever.
        sampled_positions: ever drawn.
        removed_trajectories: ever.
        updated_steps: whose values were replaced since the server began, each as often as it was.
    """

    def __init__(
        self,
        config: TableConfig,
        rng: np.random.Generator,
        *,
        logged: bool = False,
        first_ordinal: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """A logged table collects what was removed until `take_removed`."""
        self.config = config
        self.rings = ColumnRings(config.signature, config.capacity)
        self.priorities = Priorities(config.capacity)
        self.num_steps = 0
        self.first_ordinal = self.next_ordinal = first_ordinal
        self.inserted_steps = self.inserted_trajectories = self.sampled_positions = self.removed_trajectories = 0
        self.updated_steps = 0
        self._clock = clock
        self._rng = rng
        self._logged = logged
        self._slots = Slots(config.capacity)
        self._items = Items(config, rng)
        self._remover = REMOVERS[config.remover](rng, self._priority_of)
        self.has_priorities = self._items.uses_priorities or self._remover.uses_priorities
        needs_owners = bool(config.max_times_sampled) or self._remover.uses_priorities
        self._owners = np.zeros(config.capacity if needs_owners else 0, np.int64)  # by slot: ordinal of the trajectory
        self._stored: dict[int, Stored] = {}
        self._known = KnownTrajectories()
        self._removed: list[Removed] = []
        self.episode_seeds = EpisodeSeeds()
        self._newest_of: dict[str, Stored] = {}  # by actor; only where sequences go on in the next trajectory
        rule = config.sequences
        self._every_step = rule.period == 1 and rule.episode_end is not EpisodeEnd.TRUNCATE
        self._default_slots: list[NDArray[np.int64]] | None = None  # what was restored without a priority of its own

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def num_trajectories(self) -> int:
        """Trajectories stored now."""
        return len(self._stored)

    @property
    def num_items(self) -> int:
        """Items stored now."""
        return self._items.number

    @property
    def mass(self) -> float:
        """By how much it counts among several that share a batch: the sum of its weights, or of its items."""
        return self._items.mass

    @property
    def step_bytes(self) -> int:
        """Bytes of the columns of one step."""
        return sum(self.rings.row_bytes.values())

    @property
    def memory_bytes(self) -> int:
        """As memory_of."""
        return memory_of(self.config)

    def trajectories(self) -> list[Stored]:
        """The stored ones, oldest first."""
        return list(self._stored.values())

    def find_trajectory(self, trajectory_id: str) -> Stored | None:
        """The stored one of that id."""
        return self._known.find(trajectory_id)

    def matching(self, wanted: TrajectoryFilter) -> list[Stored]:
        """The stored trajectories that a filter matches, oldest first."""
        if wanted.trajectory_ids:
            found = (self._known.find(trajectory_id) for trajectory_id in dict.fromkeys(wanted.trajectory_ids))
            candidates = sorted((stored for stored in found if stored is not None), key=lambda stored: stored.ordinal)
        else:
            candidates = self.trajectories()
        return [stored for stored in candidates if stored.matches(wanted)]

    def read(self, slots: NDArray[np.int32]) -> dict[str, NDArray[np.generic]]:
        """The steps in slots [N], a copy [N, *shape] of every column."""
        return self.rings.read(slots.astype(np.int64))

    def origin_of(self, slot: int) -> tuple[int, float]:
        """The weights that played the chunk of the step in a slot, and the Unix time at which it was stored."""
        return int(self._slots.weights_versions[slot]), float(self._slots.stored_at[slot])

    # --- inserting ---------------------------------------------------------------------------------------------------

    def check_new(self, block: Block) -> list[int]:
        """Which records of a block are new; the others are known with the same content.

        Raises:
            Refusal: CONTENT_CONFLICT, MISSING_CHUNK, BAD_LENGTH.
        """
        return self._known.check_new(block, self.config.capacity)

    def items_of(self, block: Block) -> int:
        """How many steps become items when a block of new records is stored."""
        if self._every_step:
            return block.num_steps
        total = 0
        reached: dict[str, tuple[int, int]] = {}  # number of the first stored step, and steps stored
        for record in block.records:
            stored = self._known.find(record.trajectory_id)
            known = (stored.chunks[0].first_step, len(stored.slots)) if stored else (record.first_step, 0)
            first, before = reached.get(record.trajectory_id, known)
            total += len(_new_items(self.config.sequences, record, first, before))
            reached[record.trajectory_id] = (first, before + record.num_steps)
        return total

    def can_place(self, block: Block) -> bool:
        """Whether there is room, if need be after removing everything that is stored."""
        return block.num_steps <= self._slots.num_free + self.num_steps

    def place(self, block: Block) -> Placement:
        """Reserve slots for a block that can be placed; what the remover chooses to make room is gone from now on."""
        gone: list[Stored] = []
        lacking = block.num_steps - self._slots.num_free
        while lacking > 0:
            chosen = self._stored[self._remover.choose()]
            self._forget(chosen)
            gone.append(chosen)
            lacking -= len(chosen.slots)
        self._empty(gone)
        slots = self._slots.reserve(block.num_steps)
        placement = Placement(self.next_ordinal, slots.astype(np.int32), self._clock())
        self.next_ordinal += len(block.records)
        return placement

    def abandon(self, placement: Placement) -> None:
        """The block is not going to be stored."""
        self._slots.give_back(placement.slots.astype(np.int64))

    def store(self, block: Block, placement: Placement, entries: Sequence[str] | None = None) -> None:
        """Store a block where it was placed; its steps can be drawn from now on.

        Args:
            block: records that are new.
            placement: of this block.
            entries: the log entry that holds each record; none in a table without a log.
        """
        slots = placement.slots.astype(np.int64)
        lengths = [record.num_steps for record in block.records]
        self.rings.write(slots, block.columns)
        self._slots.fill(slots, lengths, placement.ordinal + np.arange(len(lengths)))
        self._slots.stored_at[slots] = placement.stored_at
        versions = np.array([record.weights_version for record in block.records], np.uint64)
        self._slots.weights_versions[slots] = np.repeat(versions, lengths)
        self._give_first_priorities(block, slots)
        stored, items = self._note(block, placement, entries)
        if len(self._owners):
            self._owners[slots] = np.repeat([one.ordinal for one in stored], lengths)
        new_items = slots if self._every_step else np.concatenate(items)
        self._items.insert(new_items, self.priorities.values[new_items])
        self.num_steps += block.num_steps
        self.inserted_steps += block.num_steps
        if self.config.max_times_sampled:
            self._remove_without_items({one.ordinal for one in stored})
        if self.config.keep_steps and self._default_slots is None:  # what is restored was kept
            self._keep_to_size(stored)

    def _keep_to_size(self, new: Sequence[Stored]) -> None:
        """Let trajectories go until no more steps are kept than the table keeps, as if the new ones came one by one."""
        coming = {one.ordinal: len(one.slots) for one in new}
        waiting = sum(coming.values())
        for one in dict.fromkeys(new):
            waiting -= coming.pop(one.ordinal, 0)
            if one.ordinal not in self._stored or self.num_steps - waiting <= self.config.keep_steps:
                continue
            if self.config.replace_probability < 1 and self._rng.random() >= self.config.replace_probability:
                self.remove([one])
            while self.num_steps - waiting > self.config.keep_steps:
                is_alone = one.ordinal in self._stored and self.num_steps - waiting == len(one.slots)
                chosen = one.ordinal if is_alone else self._remover.choose_older(one.ordinal)
                waiting -= coming.pop(chosen, 0)
                self.remove([self._stored[chosen]])

    def _give_first_priorities(self, block: Block, slots: NDArray[np.int64]) -> None:
        priorities = np.full(len(slots), self.priorities.highest, np.float32)
        start = 0
        for record in block.records:
            part = slice(start, start + record.num_steps)
            start = part.stop
            if record.priorities is not None:
                priorities[part] = record.priorities
            elif self._default_slots is not None:
                self._default_slots.append(slots[part])
        self.priorities.set(slots, priorities)

    def _note(
        self, block: Block, placement: Placement, entries: Sequence[str] | None
    ) -> tuple[list[Stored], list[NDArray[np.int64]]]:
        """Note whose the steps are; returns the trajectory of each record, and the slots that become items."""
        trajectories: list[Stored] = []
        items: list[NDArray[np.int64]] = []
        start = 0
        for i, record in enumerate(block.records):
            slots = placement.slots[start : start + record.num_steps]
            start += record.num_steps
            entry = entries[i] if entries else ""
            chunk = StoredChunk(record.first_step, record.num_steps, record.digest, entry, placement.ordinal + i)
            stored = self._note_chunk(record, chunk, slots, placement.stored_at)
            trajectories.append(stored)
            if not self._every_step:
                before = len(stored.slots) - record.num_steps
                new = _new_items(self.config.sequences, record, stored.chunks[0].first_step, before)
                items.append(stored.slots[new.start : new.stop : new.step].astype(np.int64))
        return trajectories, items

    def _note_chunk(self, record: Record, chunk: StoredChunk, slots: NDArray[np.int32], stored_at: float) -> Stored:
        stored = self._known.find(record.trajectory_id)
        if stored is None:
            stored = Stored(record, chunk, slots, stored_at)
            self._known.add(stored)
            self._stored[stored.ordinal] = stored
            self._remover.insert(stored.ordinal)
            self.episode_seeds.add(stored.episode_seed)
            self.inserted_trajectories += chunk.first_step == 0
            self._link(stored)
        else:
            self._slots.link(int(stored.slots[-1]), int(slots[0]))
            stored.extend(record, chunk, slots)
        if not record.open:
            self._slots.end(int(slots[-1]), terminated=record.terminated)
        return stored

    def _link(self, stored: Stored) -> None:
        """Let the sequences of the actor's last trajectory go on in this one, if that is the rule."""
        if self.config.sequences.episode_end is not EpisodeEnd.CONTINUE:
            return
        last = self._newest_of.get(stored.actor_id)
        if last is not None and not last.open:
            self._join(last, stored)
        self._newest_of[stored.actor_id] = stored

    def _join(self, one: Stored, following: Stored | None) -> None:
        self._slots.link(int(one.slots[-1]), None if following is None else int(following.slots[0]))
        one.linked_to = following
        if following is not None:
            following.linked_from = one

    # --- removing ----------------------------------------------------------------------------------------------------

    def remove(self, trajectories: Sequence[Stored]) -> None:
        """Remove stored trajectories; their ids stay known."""
        for stored in trajectories:
            self._forget(stored)
        self._empty(trajectories)

    def take_removed(self) -> list[Removed]:
        """What was removed since the last call, for whatever reason, oldest first."""
        removed, self._removed = self._removed, []
        return removed

    def recall_removed(self, removed: Sequence[Removed]) -> None:
        """Know trajectories, oldest first, as removed before all that were since."""
        self._known.recall(removed)

    def removed_known(self) -> list[Removed]:
        """The removed ones that are still known, oldest first; before them removed parts of stored ones."""
        return self._known.removed()

    def _forget(self, stored: Stored) -> None:
        """A trajectory is stored no more; its slots are still to be emptied."""
        self._unlink(stored)
        self._remover.remove(stored.ordinal)
        self.episode_seeds.remove(stored.episode_seed)
        del self._stored[stored.ordinal]
        removed = self._known.remove(stored)
        if self._logged:
            self._removed.append(removed)
        self.num_steps -= len(stored.slots)
        self.removed_trajectories += 1

    def _empty(self, trajectories: Sequence[Stored]) -> None:
        """The steps of forgotten trajectories are no more."""
        if trajectories:
            slots = np.concatenate([stored.slots for stored in trajectories]).astype(np.int64)
            self._items.remove(slots)
            self._slots.empty(slots)

    def _unlink(self, stored: Stored) -> None:
        """Let sequences that went on in this trajectory go on in the one after it: as they will after a restart."""
        before, after = stored.linked_from, stored.linked_to
        if before is not None:
            self._join(before, after)
        elif after is not None:
            after.linked_from = None
        stored.linked_from = stored.linked_to = None
        if self._newest_of.get(stored.actor_id) is stored:
            if before is not None:
                self._newest_of[stored.actor_id] = before
            else:
                del self._newest_of[stored.actor_id]

    # --- recovering --------------------------------------------------------------------------------------------------

    def restore(self, block: Block, placement: Placement, entries: Sequence[str]) -> None:
        """Store a block at the slots that it had in an earlier life; only before `settle`."""
        if self._default_slots is None:
            self._default_slots = []
        self.store(block, placement, entries)
        self.next_ordinal = max(self.next_ordinal, placement.ordinal + len(block.records))

    def settle(self) -> None:
        """Go on from what was restored."""
        newest = next(reversed(self._stored.values()), None)
        self._slots.settle(int(newest.slots[-1]) + 1 if newest else 0)

    def restore_priorities(self, values: NDArray[np.float32], valid: NDArray[np.bool_], highest: float) -> None:
        """Give saved priorities to restored steps; those without one of their own get the highest seen.

        Args:
            values: float32 [N], of the slots 0 to N - 1.
            valid: bool [N], which of them belong to the step that is there now.
            highest: the highest one seen.
        """
        self.priorities.highest = max(self.priorities.highest, highest)
        saved = np.flatnonzero(valid)
        default = np.concatenate((*(self._default_slots or ()), np.empty(0, np.int64)))
        default = default[self._slots.generations[default] != 0]  # what was restored without items may be gone again
        self._prioritize(default, np.full(len(default), self.priorities.highest, np.float32))
        self._prioritize(saved, values[saved])
        self._default_slots = None

    # --- in place ----------------------------------------------------------------------------------------------------

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The slots [N] that keys [N] name, and which of them [N] still hold that step."""
        return self._slots.find(keys)

    def generations(self, slots: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The generations [N] of slots [N]; 0 for those without a step."""
        return self._slots.generations[slots]

    def write_rows(self, slots: NDArray[np.int64], columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace values [N, *shape] of some columns of the steps in slots [N]."""
        self.rings.write_some(slots, columns)

    def replaceable(self, updates: ColumnUpdates) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
        """The slots [N] of new values, which of them [N] are to be replaced, and how many others hold no such step."""
        slots, wanted = self.find(updates.keys)
        evicted = len(slots) - int(np.count_nonzero(wanted))
        name = updates.version_column
        if name:
            stored = self.rings.take(name, np.where(wanted, slots, self.config.capacity))  # zeros where there is none
            wanted = wanted & np.greater_equal(updates.columns[name], stored)
        return slots, wanted, evicted

    def replace_values(self, updates: ColumnUpdates) -> Updated:
        """Replace values of stored steps, but not those of a greater version."""
        slots, wanted, evicted = self.replaceable(updates)
        chosen = updates.chosen(wanted)
        self.write_rows(slots[wanted], chosen.columns)
        updated = len(chosen.keys)
        self.updated_steps += updated
        return Updated(updated, evicted, len(slots) - updated - evicted)

    def all_priorities(self) -> PriorityUpdates:
        """Those of all stored steps, a copy; none where they make no difference."""
        stored = np.flatnonzero(self._slots.generations) if self.has_priorities else np.empty(0, np.int64)
        return PriorityUpdates(self._slots.keys(stored), self.priorities.values[stored])

    def update_priorities(self, updates: PriorityUpdates) -> tuple[int, int]:
        """Set priorities; returns how many were set and how many keys name nothing stored."""
        slots, valid = self._slots.find(updates.keys)
        self._prioritize(slots[valid], updates.priorities[valid])
        updated = int(np.count_nonzero(valid))
        return updated, len(slots) - updated

    def _prioritize(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        if not len(slots):
            return
        self.priorities.set(slots, priorities)
        self._items.update(slots, priorities)
        if self._remover.uses_priorities:
            self._remover.reprioritize(np.unique(self._owners[slots]).tolist())

    def _priority_of(self, ordinal: int) -> float:
        slots = self._stored[ordinal].slots
        return float(np.max(self.priorities.values[slots[self._items.are_in(slots)]], initial=0.0))

    # --- drawing -----------------------------------------------------------------------------------------------------

    def can_draw(self, batch_size: int) -> bool:
        """Whether there are items, and often enough to be drawn."""
        return self._items.can_draw(batch_size)

    def can_match(self, wanted: StepFilter, batch_size: int) -> bool:
        """Whether a filter leaves items, and often enough to be drawn; takes time in proportion to the capacity."""
        return self._items.can_draw(batch_size, self._allowed(wanted))

    def draw(self, spec: SampleSpec, rng: np.random.Generator | None = None) -> Drawn:
        """Draw a batch that was checked and can be drawn, with the given generator or the table's own.

        It may use up items, and a trajectory with its last one: gather the columns before anything else is stored.

        Raises:
            Refusal: RATE_LIMITED, no item matches the filter.
        """
        size = self.num_items
        allowed = self._allowed(spec.filter)
        if allowed is not None and not self._items.can_draw(spec.batch_size, allowed):
            raise Refusal(Reason.RATE_LIMITED, f"too few items of table {self.config.name!r} match the filter")
        draw = self._items.draw(spec.batch_size, allowed, rng)
        self.sampled_positions += spec.batch_size
        drawn = self._drawn(draw, spec, size)
        if self.config.max_times_sampled:
            used_up = draw.slots[~self._items.are_in(draw.slots)]
            self._remove_without_items(set(self._owners[used_up].tolist()))
        return drawn

    def peek(self, spec: SampleSpec, rng: np.random.Generator | None = None) -> Drawn | None:
        """Look at items that a filter matches, each equally likely, without using any up; None if there is none."""
        draw = self._items.peek(spec.batch_size, self._allowed(spec.filter), rng)
        return self._drawn(draw, spec, self.num_items) if len(draw.slots) else None

    def _drawn(self, draw: Draw, spec: SampleSpec, table_size: int) -> Drawn:
        return Drawn(
            walk=self._slots.walk(draw.slots, spec.reach),
            keys=self._slots.keys(draw.slots),
            probabilities=draw.probabilities,
            weights_versions=self._slots.weights_versions[draw.slots],
            table_size=table_size,
            mean_age_seconds=self._clock() - float(self._slots.stored_at[draw.slots].mean()),
        )

    def _allowed(self, wanted: StepFilter) -> NDArray[np.bool_] | None:
        if not wanted.max_age_seconds and not wanted.min_weights_version:
            return None
        allowed = self._slots.weights_versions >= wanted.min_weights_version
        if wanted.max_age_seconds:
            allowed &= self._slots.stored_at >= self._clock() - wanted.max_age_seconds
        return allowed

    def _remove_without_items(self, ordinals: set[int]) -> None:
        """Remove those of these trajectories that have ended and can never be drawn again."""
        trajectories = [self._stored[ordinal] for ordinal in sorted(ordinals)]
        self.remove([one for one in trajectories if not one.open and not self._items.are_in(one.slots).any()])

    def n_step(self, drawn: Drawn, wanted: NStep) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns [B] of at most n rewards, and what a value after them [B] is multiplied with."""
        rewards = self.rings.take(wanted.reward_column, drawn.walk.rows[:, : wanted.steps]).astype(np.float64)
        summed = np.minimum(drawn.walk.bounds, wanted.steps)
        discounts = wanted.discount ** np.arange(wanted.steps)
        within = np.arange(wanted.steps) < summed[:, None]
        returns = (rewards * discounts * within).sum(axis=1)
        ended = drawn.walk.terminated & (drawn.walk.bounds <= wanted.steps)
        after = np.where(ended, 0.0, wanted.discount**summed)
        return returns.astype(np.float32), after.astype(np.float32)

    def check_sample(self, spec: SampleSpec, max_bytes: int) -> None:
        """Refuse a sample that this table cannot answer, before anything is allocated.

        Raises:
            Refusal: WRONG_SIGNATURE for unknown columns, MESSAGE_TOO_LARGE.
        """
        available = self.rings.row_bytes
        windows = [spec.window(name) for name in spec.windows]
        needed = [*(window.column for window in windows), *((spec.n_step.reward_column,) if spec.n_step else ())]
        for name in needed:
            if name not in available:
                raise Refusal(
                    Reason.WRONG_SIGNATURE, f"no column {name[:40]!r}; the table has [{', '.join(available)}]"
                )
        if spec.n_step is not None:
            self._check_reward(spec.n_step.reward_column)
        row = _BYTES_BESIDE_COLUMNS + sum(available[window.column] * window.length for window in windows)
        # A sequence is walked as far as the windows reach, whatever they show of it; returns take several arrays.
        walk = 8 * spec.reach + (32 * spec.n_step.steps if spec.n_step else 0)
        size = spec.batch_size * max(row, walk)
        if size > max_bytes:
            raise Refusal(Reason.MESSAGE_TOO_LARGE, f"the batch would take {size} bytes, at most {max_bytes} are sent")

    def _check_reward(self, name: str) -> None:
        spec = next(spec for spec in self.config.signature if spec.name == name)
        if spec.shape or not spec.dtype.startswith("float"):
            raise Refusal(
                Reason.WRONG_SIGNATURE, f"reward column {name!r} is {spec.dtype} {list(spec.shape)}, not a float scalar"
            )


def _new_items(rule: SequenceRule, record: Record, first_step: int, before: int) -> range:
    """Which steps of a trajectory, counted from its first stored one, become items when a chunk is added.

    Args:
        rule: which steps are items.
        record: the chunk.
        first_step: the number of the first stored step in the whole trajectory.
        before: how many steps were stored.
    """
    short = rule.length - 1 if rule.episode_end is EpisodeEnd.TRUNCATE else 0
    start, stop = max(before - short, 0), max(before + record.num_steps - short, 0)
    if rule.period == 0:
        return range(1 if stop and not record.open and first_step == 0 else 0)
    return range(start + -(first_step + start) % rule.period, stop, rule.period)
