"""The training loop, and nowhere else."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from git_scale.checkpoint import layout
from git_scale.checkpoint.layout import RunProgress
from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.data.heldout import named
from git_scale.data.mixture import Mixture
from git_scale.errors import CheckpointError, LoaderError, UserError
from git_scale.evaluation.health import Metrics
from git_scale.monitoring.meters import Meters
from git_scale.monitoring.writers import LogWriter
from git_scale.objectives.training_loss import TrainingLoss, total
from git_scale.parallel import collectives
from git_scale.parallel.comm import WORLD
from git_scale.parallel.engine import Engine, UpdateResult
from git_scale.planning.model_flops import ModelFlops
from git_scale.schedules import lr_factor
from git_scale.stop import Stopped, StopRequest
from git_scale.training.bad_samples import BadSamples
from git_scale.training.checkpoints import Checkpoints
from git_scale.training.evaluations import Evaluations
from git_scale.training.guards import StepGuards
from git_scale.training.lease import LEASE, STALE_S, Lease
from git_scale.training.out_of_memory import in_phase
from git_scale.training.outcome import RunOutcome, StepResult

log = logging.getLogger(__name__)


NOTHING_TO_LEARN = UpdateResult(grad_norm=math.nan, skipped=True)
"""Of a step whose samples have no targets: it changes nothing, neither weights nor moments nor statistics."""


class Trainer:
    """Runs steps, reports, evaluates and saves on their cadence; its own state is the RunProgress."""

    def __init__(
        self,
        run: RunConfig,
        engine: Engine,
        batches: Iterable[Batch],
        checkpoints: Checkpoints,
        evaluations: Evaluations,
        writer: LogWriter,
        meters: Meters,
        model_flops: ModelFlops,
        progress: RunProgress,
        lease: Lease | None,
        train: Mixture,
    ) -> None:
        """`lease`: of the run's folder, on the writer."""
        self.run = run
        self.engine = engine
        self.checkpoints = checkpoints
        self.evaluations = evaluations
        self.writer = writer
        self.meters = meters
        self.model_flops = model_flops
        self.lease = lease
        self.mixture = train
        self.loss = TrainingLoss(run)
        self.guards = StepGuards(engine)
        self.unusable = BadSamples(run.data.max_bad_share, (progress.recent_samples, progress.recent_bad))
        self.step = progress.step
        self.skipped_steps = progress.skipped_steps
        self.bad_samples = progress.skipped_samples
        self._first_progress = progress
        self._accumulation = run.accumulation(progress.dp)
        self._batches: Iterator[Batch] = iter(batches)

    def fit(self, stop_request: StopRequest) -> RunOutcome:
        """Trains to the last step, or to the step in which a stop signal came; saves at the end.

        An evaluation that a stop does not leave time for is made up for at the next start.
        Raises CheckpointError when the last checkpoint could not be written: who starts again, as a requeued job
        does, would not get further.
        """
        owed = not self.catch_up()
        stopped, saved = owed, True
        while self.step < self.run.train.steps and not stopped:
            try:
                with in_phase(f"step {self.step + 1}"):
                    stopped = self.train_step(bool(stop_request)).stop
            except (Stopped, LoaderError) as cut:  # the same on all ranks: there was no batch for a step
                return self.cut_off(cut)
            self.step += 1
            if self.is_due(self.run.log.every) or self.step == 1:  # a first line without a wait
                self.report()
            if self.is_due(self.run.checkpoint.every) or stopped:
                saved = self.save()
            owed = self.evaluation_is_due and (stopped or not self.evaluate())
            if owed and not stopped:
                stopped, saved = True, self.save()
        if not saved:
            raise CheckpointError(f"step {self.step} is the last of this start, and could not be saved")
        if self.data_is_unusable:
            self.unusable.explain(self.step)
            return RunOutcome.DATA_UNUSABLE
        return RunOutcome.STOPPED if owed or self.step < self.run.train.steps else RunOutcome.DONE

    def cut_off(self, cut: Stopped | LoaderError) -> RunOutcome:
        """Ends a run that gets no batches, with a checkpoint of the steps it has done."""
        saved = self.step == self._first_progress.step or self.save()
        if isinstance(cut, LoaderError):
            raise cut
        log.warning("step %d is the last of this start: %s", self.step, str(cut) or "a stop")
        if not saved:
            raise CheckpointError(f"step {self.step} is the last of this start, and could not be saved")
        return RunOutcome.STOPPED

    def catch_up(self) -> bool:
        """What an earlier start was cut off before: the evaluation of the step it ended at, or the mark of the best.

        False when a stop cuts it off again.
        """
        if self.step == 0 or not self.evaluation_is_due:
            return True
        of_this_step = self.evaluations.of_step(self.step)
        if of_this_step is None:
            return self.evaluate()
        self.keep_best(of_this_step)
        return True

    @property
    def evaluation_is_due(self) -> bool:
        return bool(self.evaluations) and self.is_due(self.run.eval.every)

    @property
    def data_is_unusable(self) -> bool:
        return self.unusable.are_too_many or self.guards.nothing_is_learned

    def is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.run.train.steps

    def train_step(self, stop: bool = False) -> StepResult:
        """One optimizer step: the loss is a mean over the global batch, of its target tokens for a language model.

        What each objective counts is known before the first forward pass of the loss, so that each micro-batch adds
        its sum divided by it, whatever the ranks, micro-batches and ragged captions.
        """
        waited_from = time.perf_counter()
        batches, failure = self._load()
        wait_s = time.perf_counter() - waited_from
        if self.loss.prepares:  # the ranks may ask the model together: none may be missing
            if any(self._sum_over_dp(int(failure is not None))):
                collectives.raise_together(failure)
            batches = self.loss.prepare(self.engine, batches)
        asked = (
            sum(batch.num_targets for batch in batches),
            int(failure is not None),
            *self.loss.counts(batches),
        )
        targets, failures, *counts = map(int, self._sum_over_dp(*asked))
        if failures:
            collectives.raise_together(failure)
        factor = lr_factor(self.step, self.run)
        self.engine.set_learning_rates(factor)
        losses, report = self._update(batches, counts)
        bad_here = [problem for batch in batches for problem in batch.problems]
        bad, stop_votes, *losses = self._sum_over_dp(len(bad_here), int(stop), *losses)
        terms = dict(zip(self.loss.terms, losses, strict=True))
        self.guards.check(self.step, sum(counts), terms, report.skipped, batches, factor)
        self.unusable.record(self.run.train.global_batch, int(bad), bad_here)
        stopped = stop_votes > 0 or self.data_is_unusable
        result = StepResult(sum(losses), terms, report.grad_norm, report.skipped, targets, int(bad), stopped)
        self.skipped_steps += result.skipped
        self.bad_samples += result.bad_samples
        self.meters.record(
            loss=result.loss,
            terms=terms if len(terms) > 1 else {},
            grad_norm=result.grad_norm,
            images=self.run.train.global_batch,
            tokens=result.targets,
            flops=self.model_flops.of_step(batches) if any(counts) else 0.0,
            wait_s=wait_s,
        )
        return result

    def _load(self) -> tuple[list[Batch], Exception | None]:
        """The micro-batches of a step; or what one rank has to say when it has none, before others wait for it."""
        try:
            return [next(self._batches) for _ in range(self._accumulation)], None
        except Exception as error:
            return [], error

    def _update(self, batches: list[Batch], counts: list[int]) -> tuple[list[float], UpdateResult]:
        """Forward, backward and step; this rank's part of each objective's loss."""
        if not any(counts):
            return [math.nan] * len(counts), NOTHING_TO_LEARN
        of_terms = dict(zip(self.loss.terms, counts, strict=True))
        losses = {name: torch.zeros((), device=self.engine.device) for name in of_terms}
        report: UpdateResult | None = None
        for batch in batches:
            found = self.micro_losses(batch, of_terms)
            self.engine.backward(total(found))
            report = self.engine.step()
            for name, loss in found.items():
                losses[name] += loss.detach()
        assert report is not None, "the last micro-batch ends the step"
        return [float(loss) for loss in losses.values()], report

    def micro_losses(self, batch: Batch, counts: dict[str, int]) -> dict[str, torch.Tensor]:
        """A micro-batch's part of each objective's loss; `counts`: what the whole step has of each."""
        engine = self.engine
        return self.loss.of(engine.forward, batch.to(engine.device), engine.dtype, counts, engine.comm)

    def report(self) -> None:
        self.unusable.say(self.step)
        values = self.meters.report(
            self.step,
            learning_rates=self.engine.tower_learning_rates(),
            skipped_steps=self.skipped_steps,
            data_skipped=self.bad_samples,
        )
        seen = self.mixture.samples_of_each(self.meters.samples)
        by_source = {f"data/samples/{name}": float(count) for name, count in seen.items()}
        self.writer.scalars(self.step, values | by_source)

    def evaluate(self) -> bool:
        """False when a stop cut it off: then nothing of it is kept."""
        try:
            with self.meters.pause(), in_phase(f"the evaluation of step {self.step}"):
                self.engine.average_statistics()
                with self.engine.holding(self.run.eval.weights):
                    metrics = self.evaluations.evaluate(self.step, self.engine, self.writer)
        except Stopped as cut:
            log.warning("step %d: evaluation cut off, the next start makes up for it. %s", self.step, cut)
            return False
        self.keep_best(metrics)
        return True

    def keep_best(self, metrics: Metrics) -> None:
        """Saves this step and points checkpoints/best to it when `checkpoint.best` was never better."""
        name = self.run.checkpoint.best
        if name is None:
            return
        value = metrics.get(f"eval/{name}")  # not there when no held-out text has a reference
        if value is None or math.isnan(value):
            log.warning(
                "step %d: checkpoint.best=%s has no value here, so no checkpoint is marked", self.step, name
            )
            return
        loss = metrics.get(named("eval/loss", name.rpartition("/")[0]))
        best = layout.BestEvaluation(self.step, name, value, loss)
        if self.checkpoints.is_best(best):
            self.save()
            self.checkpoints.mark_best(best)

    def save(self) -> bool:
        """False when a rank could not write; the log says why. Raises UserError when the folder is another's."""
        if WORLD.from_first(self.lease is not None and self.lease.is_lost()):
            raise UserError(
                f"run_dir={self.run.run_dir}: another start has taken this run over, which had not renewed its"
                f" {LEASE} for {STALE_S:.0f} s (suspended, or without its disk): step {self.step} is not saved"
            )
        with self.meters.pause(), in_phase(f"the checkpoint of step {self.step}"):
            self.engine.average_statistics()
            return self.checkpoints.save(self.progress())

    def progress(self) -> RunProgress:
        counts = self.meters.state_dict()
        recent, recent_bad = (0, 0) if self.data_is_unusable else self.unusable.recent
        return replace(
            self._first_progress,
            step=self.step,
            samples=counts["samples"],
            tokens=counts["tokens"],
            skipped_steps=self.skipped_steps,
            skipped_samples=self.bad_samples,
            recent_samples=recent,
            recent_bad=recent_bad,
        )

    def _sum_over_dp(self, *values: float) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        return collectives.sum_over_dp(tensor).tolist()
