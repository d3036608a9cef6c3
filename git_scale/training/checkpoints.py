"""Saving, finding and restoring the checkpoints of a run, on all ranks together."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialised

from git_scale.checkpoint import layout
from git_scale.checkpoint.complete import complete_checkpoint
from git_scale.checkpoint.layout import RunProgress
from git_scale.checkpoint.opened_checkpoint import read_run
from git_scale.checkpoint.state import TrainingState
from git_scale.config import RunConfig
from git_scale.data.fingerprint import compare_fingerprints
from git_scale.data.mixture import describe_sources
from git_scale.errors import CheckpointError
from git_scale.files import FileDigest, sync_folder, write_bytes
from git_scale.metrics.scores import lower_is_better
from git_scale.parallel import collectives
from git_scale.parallel.comm import WORLD
from git_scale.parallel.engine import Engine
from git_scale.parallel.topology import Topology
from git_scale.training.continuation import say_if_the_rate_jumps, source_of
from git_scale.training.run_folder import other_identity
from git_scale.training.verified import VerifiedCheckpoints, delete_older, foreign, set_aside, to_verify

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves, finds and restores the checkpoints under RUN_DIR/checkpoints. Every public method is collective."""

    def __init__(self, run: RunConfig, tokenizer_path: Path, engine: Engine, topology: Topology) -> None:
        self._run = run
        self._run_dir = Path(run.run_dir)
        self._tokenizer_path = tokenizer_path
        self._engine = engine
        self._topology = topology
        self._folder = layout.checkpoints_folder(self._run_dir)
        self._verified = VerifiedCheckpoints()  # the writer's; it decides

    def save(self, progress: RunProgress) -> bool:
        """Writes a checkpoint of this step; False (and an alarm) when a rank could not write.

        Nothing visible changes before all ranks have written; a failed save leaves the older ones as they are.
        One that is there already counts when it is whole; anything else in its place is set aside.
        Raises RuntimeError when the weights are not worth saving (Engine.check_replicas).
        """
        target = self._folder / layout.step_name(progress.step)
        in_the_way: str | layout.RefusedError | None = None
        if WORLD.from_first(os.path.lexists(target)):
            in_the_way = self._problem(target)
            if in_the_way is None:
                return True
        self._engine.check_replicas()
        partial = self._folder / f".{target.name}.partial"
        problem = WORLD.from_first(self._start(partial, target, in_the_way))
        if problem is None:
            problem = self._write_files(partial, target, progress)
        if problem is None:
            self._delete_older()
        else:
            log.error("checkpoint %s was NOT written: %s; training goes on", target.name, problem)
        return problem is None

    def _write_files(self, partial: Path, target: Path, progress: RunProgress) -> str | None:
        """Writes this rank's files; the writer publishes the whole. Returns the first problem of any rank."""
        written: list[FileDigest] = []
        try:
            state = self._engine.save(
                partial / layout.STATE_FOLDER / layout.rank_file(self._topology.global_rank)
            )
            written.append(replace(state, name=f"{layout.STATE_FOLDER}/{state.name}"))
            if self._topology.tp_rank == 0:  # its group has the same
                written.append(self._write_random_state(partial))
            problem = None
        except OSError as error:
            problem = str(error)
        of_ranks = WORLD.gather_objects((written, problem))
        outcome = next((problem for _, problem in of_ranks if problem), None)
        if self._topology.is_writer:
            outcome = outcome or self._publish(
                partial, target, progress, [f for files, _ in of_ranks for f in files]
            )
            if outcome:
                shutil.rmtree(partial, ignore_errors=True)
        return WORLD.from_first(outcome)

    def _start(self, partial: Path, target: Path, in_the_way: object) -> str | None:
        """Makes room for a new checkpoint (writer only); returns the problem, if any."""
        if not self._topology.is_writer:
            return None
        try:
            for rest in self._folder.glob(".step_*"):  # of saves and deletions that did not come to their end
                shutil.rmtree(rest, ignore_errors=True)
            if in_the_way is not None:
                set_aside(target, in_the_way)
            (partial / layout.STATE_FOLDER).mkdir(parents=True)
            sync_folder(self._run_dir)
        except OSError as error:
            return str(error)
        return None

    def _write_random_state(self, partial: Path) -> FileDigest:
        states = {"cpu": torch.get_rng_state()}
        if self._engine.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._engine.device)
        return write_bytes(partial / layout.rank_file(self._topology.dp_rank), serialised(states))

    def _publish(
        self, partial: Path, target: Path, progress: RunProgress, written: list[FileDigest]
    ) -> str | None:
        """The writer's last act: small files, the manifest, and the rename once all of it is on the disk."""
        try:
            index = self._engine.state_index()
            complete_checkpoint(partial, written, index, self._run, progress, self._tokenizer_path)
            sync_folder(partial / layout.STATE_FOLDER)
            sync_folder(partial)
            partial.rename(target)
            sync_folder(target.parent)
            self._verified.remember(target, None)
        except OSError as error:
            return str(error)
        return None

    def _delete_older(self) -> None:
        """Keeps the newest `checkpoint.keep` whole checkpoints and the best one."""
        keep, candidates = self._run.checkpoint.keep, layout.published(self._run_dir)
        while unknown := WORLD.from_first(to_verify(candidates, self._verified, keep)):
            if problem := self._problem(unknown):
                log.warning("checkpoint %s does not count for checkpoint.keep: %s", unknown, problem)
        if self._topology.is_writer:
            best = layout.read_best(self._run_dir)
            delete_older(candidates, self._verified, keep, layout.step_name(best.step) if best else None)

    def is_best(self, best: layout.BestEvaluation) -> bool:
        """Whether this evaluation is better than the one whose checkpoint is marked, see BestEvaluation.beats."""
        marked = WORLD.from_first(layout.read_best(self._run_dir))
        return best.beats(marked, lower_is_better(best.metric.rpartition("/")[2]))

    def mark_best(self, best: layout.BestEvaluation) -> None:
        """Makes checkpoints/best mean that step's checkpoint, if it was written."""
        if self._topology.is_writer and (self._folder / layout.step_name(best.step)).is_dir():
            try:
                layout.write_best(self._run_dir, best)
            except OSError as error:
                log.error("step %d was NOT marked as the best: %s; training goes on", best.step, error)

    def resume(self, start: RunProgress) -> RunProgress | None:
        """Restores the newest undamaged checkpoint; of a run without any that of `continue_from`, else None.

        `start` is this run before its first step: the data and the tokenizer must be the checkpoint's, the number of
        ranks and their arrangement need not. Raises CheckpointError when there are checkpoints but none can be used.
        """
        candidates = WORLD.from_first(layout.published(self._run_dir))
        damaged: dict[Path, str] = {}
        for checkpoint in candidates:
            problem = self._problem(checkpoint, hears_stop=True)
            if isinstance(problem, layout.RefusedError):
                raise problem
            if problem is not None:
                log.warning("checkpoint %s is damaged (%s); trying the one before", checkpoint, problem)
                damaged[checkpoint] = str(problem)
                continue
            restored = self._restore(checkpoint, start)
            if self._topology.is_writer:
                self._tidy(damaged)
            return restored
        if candidates:
            raise CheckpointError(
                f"all {len(candidates)} checkpoints in {self._folder} are damaged, {candidates[0].name}:"
                f" {damaged[candidates[0]]}; restore one, or choose another run_dir to start afresh"
            )
        source = WORLD.from_first(collectives.together(lambda: source_of(self._run)))
        if source is None:
            return None
        if problem := self._problem(source, hears_stop=True):
            raise CheckpointError(f"continue_from={self._run.continue_from}: {source} is damaged ({problem})")
        log.info("continue_from: begins with all of %s", source)
        return self._restore(source, start)

    def _restore(self, checkpoint: Path, start: RunProgress) -> RunProgress:
        saved, there = layout.read_progress(checkpoint), read_run(checkpoint)
        data = compare_fingerprints(saved.data_fingerprint, start.data_fingerprint)
        self._refuse_foreign(checkpoint, there, saved, start, data.difference)
        if data.note:
            log.warning("%s: the training data is taken for the same: %s", checkpoint, data.note)
        say_if_the_rate_jumps(there, self._run, saved.step)
        self._engine.load(TrainingState(checkpoint / layout.STATE_FOLDER))
        self._restore_random_state(checkpoint, saved)
        log.info("goes on from step %d, %s", saved.step, _arrangement(saved, start))
        start = replace(start, data_fingerprint=data.known)
        kept = ("world_size", "zero_stage", "tp", "data_fingerprint")
        return replace(saved, **{name: getattr(start, name) for name in kept})

    def _tidy(self, damaged: dict[Path, str]) -> None:
        """Damaged checkpoints give their names to those to come; a best one whose link was not made gets it."""
        try:
            for checkpoint, problem in damaged.items():
                if not foreign(checkpoint):
                    set_aside(checkpoint, problem)
            layout.link_best(self._run_dir)
        except OSError as error:
            log.warning("%s: %s", self._folder, error)

    def _problem(self, checkpoint: Path, hears_stop: bool = False) -> str | layout.RefusedError | None:
        """Why it is no whole checkpoint of its step, as any rank finds; the ranks share the hashing. Collective.

        What this process wrote or has looked at is not read again. Raises Stopped when it hears a stop.
        """
        if WORLD.from_first(self._verified.is_whole(checkpoint)):
            return None
        here = collectives.together(lambda: self._problem_here(checkpoint), hears_stop)
        problem = next((found for found in WORLD.gather_objects(here) if found), None)
        if self._topology.is_writer:
            self._verified.remember(checkpoint, problem)
        return problem

    def _problem_here(self, checkpoint: Path) -> str | layout.RefusedError | None:
        """This rank's part: some of the files, and of the writer what they hold."""
        try:
            files = layout.read_manifest(checkpoint)
            mine = files[self._topology.global_rank :: self._topology.world_size]
            problem = layout.first_damage(checkpoint, mine)
            if problem is None and self._topology.is_writer:
                layout.refuse_stranger(checkpoint, files)
                problem = layout.shortfall(checkpoint, files)
                step = layout.read_progress(checkpoint).step
                if problem is None and layout.step_name(step) != checkpoint.name:
                    problem = f"its {layout.PROGRESS} says step {step}"
                TrainingState(checkpoint / layout.STATE_FOLDER)
            return problem
        except layout.RefusedError as error:
            return error
        except (CheckpointError, OSError) as error:
            return str(error)

    def _refuse_foreign(
        self, checkpoint: Path, there: RunConfig, saved: RunProgress, start: RunProgress, other_data: str
    ) -> None:
        """`other_data`: what the data of the checkpoint has that this start's has not; empty for the same data."""
        differences = [f"training data: {other_data}"] if other_data else []
        theirs, ours = describe_sources(there.data), describe_sources(self._run.data)
        if other_data and theirs != ours:
            differences.append(f"{theirs} there, {ours} here")
        if saved.tokenizer_fingerprint != start.tokenizer_fingerprint:
            differences.append(
                f"tokenizer: {saved.tokenizer_fingerprint} there, {start.tokenizer_fingerprint} here"
            )
        # where the run began, its config.yaml says; a checkpoint that it began at does not know
        others = other_identity(
            there.model_copy(update={"continue_from": self._run.continue_from}), self._run
        )
        differences += [f"{key}: {theirs!r} there, {ours!r} here" for key, ours, theirs in others]
        if differences:
            raise CheckpointError(
                f"{checkpoint} cannot be resumed with these settings ({'; '.join(differences)}):"
                " use those of the checkpoint, or another run_dir; one that was put there by somebody is to be moved"
                " away"
            )

    def _restore_random_state(self, checkpoint: Path, saved: RunProgress) -> None:
        """Of the same number of data-parallel ranks; others draw anew, differently from what was drawn before."""
        if saved.dp != self._topology.dp:
            torch.manual_seed(random_seed(self._run.seed, self._topology, saved.step))
            return
        states = load_file(checkpoint / layout.rank_file(self._topology.dp_rank))
        torch.set_rng_state(states["cpu"])
        if self._engine.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self._engine.device)


def _arrangement(saved: RunProgress, start: RunProgress) -> str:
    then, now = (f"dp {at.dp} x tp {at.tp}, ZeRO {at.zero_stage}" for at in (saved, start))
    return f"written by {then}" + ("" if then == now else f"; now {now}")


def random_seed(seed: int, topology: Topology, step: int) -> int:
    """Of dropout, from `step` on: differs between data-parallel ranks and is the same in a tensor-parallel group."""
    return (seed + step) * topology.dp + topology.dp_rank + 1
