"""Train a model on one of the objectives of the paper: the loop, and how a run is set up, resumed and
finished.

    python train.py --objective mlm                                        phase 1: the teacher
    python train.py --objective lsm --init random                          phase 2: a concept student
    python train.py --objective token-head --init runs/lsm-random          phase 3: words from concepts

What is missing at its default place (tokenizer, teacher, dictionary) is built first. With --resume, a run
that exists continues from its newest checkpoint.
"""

from __future__ import annotations

from mlsm.command_line import Parser, parse_flags, parser, show_help
from mlsm.config import DataConfig, ModelConfig, OutputConfig, TrainConfig
from mlsm.finished import say_if_finished


def flags() -> Parser:
    """The parser of the command line."""
    groups = {"training": TrainConfig, "data": DataConfig, "model": ModelConfig, "output": OutputConfig}
    return parser(__doc__ or "", groups, has_presets=True)


show_help(__name__, flags)  # before the imports below, which take seconds
say_if_finished(__name__, flags)

import functools
from pathlib import Path

import torch
from torch import Tensor

from mlsm import cli, distributed
from mlsm.device import choose_compiling, choose_device, choose_num_threads, choose_precision
from mlsm.directory import only_process
from mlsm.evaluation.heldout import MASKED, predictions
from mlsm.evaluation.watch import HeldoutWatch
from mlsm.files import write_tensors
from mlsm.log import Meter, RunLog, progress, say
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    TrainingState,
    save_checkpoint,
    save_milestone,
    words_name,
)
from mlsm.runs.record import read_record
from mlsm.runs.run import init_from_, load_weights, load_weights_
from mlsm.runs.teacher import load_teacher
from mlsm.seeds import seed_for
from mlsm.text.batches import Corpus, Update
from mlsm.training.cost import check_cost
from mlsm.training.divergence import DivergenceMonitor, record_update
from mlsm.training.objectives import find_objective
from mlsm.training.optim import (
    WeightAverage,
    load_optimizers_,
    load_scaler_,
    make_optimizers,
    optimizer_tensors,
    set_learning_rate_,
    step_,
)
from mlsm.training.plan import Plan, make_plan, with_text
from mlsm.training.resume import open_run
from mlsm.training.updates import make_update, pads_sequences, prepared


def train(plan: Plan) -> None:
    """Run the plan from its newest checkpoint (or the start) to the end, and write the finished model."""
    corpus = Corpus(plan.record.data, plan.tokenizer)
    plan = with_text(plan, corpus)
    record, config = plan.record, plan.record.train
    objective, device = find_objective(config.objective), choose_device(config.device)
    choose_num_threads(config.threads, device, before=record.num_threads)
    precision = choose_precision(config.amp, device, record.model.width, before=record.precision)
    compiles = choose_compiling(config.compile, device)
    checkpoint = open_run(plan.directory, record, plan.tokenizer, corpus, precision.name)
    if (plan.directory / MODEL_FILE).exists():
        say(f"{plan.directory} is finished")
        return
    say(f"precision: {precision.name} ({precision.reason})")
    model = build_model(plan, checkpoint, device)
    teacher = None
    if plan.dictionary is not None:
        teacher = load_teacher(Path(config.teacher), plan.dictionary, config, device, config.coder)
    if compiles:
        say("the first updates are slow, because the layers are compiled in them (not with --no-compile)")
        model.encoder.compile_layers_()
        if teacher is not None:
            teacher.encoder.compile_layers_()
    optimizers, average = make_optimizers(model, config), WeightAverage(model, config)
    before = checkpoint.state if checkpoint else TrainingState(words_seen=0, skipped_updates=0)
    watch = HeldoutWatch(model, teacher, corpus, config, before)
    state = {"words_seen": before.words_seen, "skipped_updates": before.skipped_updates}
    if checkpoint is not None:
        load_optimizers_(optimizers, average, model, checkpoint.optimizer)
        load_scaler_(precision.scaler, before.scaler)
        say(f"resuming {plan.directory} after update {checkpoint.step}")
    start = distributed.equal_on_all_ranks(checkpoint.step if checkpoint else 0, "newest checkpoint")

    def save(step: int) -> None:
        tensors = optimizer_tensors(optimizers, model) | average.tensors()
        facts = TrainingState(
            **state,
            scaler=precision.scaler.state_dict(),
            best_loss=watch.best_loss,
            evals_since_best=watch.evals_since_best,
        )
        checkpoint = Checkpoint(step, model.state_dict(), tensors, facts)
        with distributed.rank_zero_first():
            save_checkpoint(plan.directory, checkpoint, config.keep_checkpoints)

    def keep(name: str, step: int, weights: dict[str, Tensor]) -> None:
        save_milestone(plan.directory, name, step, weights, TrainingState(**state, scaler={}))

    def measure_heldout(step: int) -> dict[str, float]:
        values, is_best = watch.measure()
        log.write(step, values)
        if is_best and config.eval_every:
            keep("best", step, model.state_dict())
        return values

    milestones, done = config.word_counts(), start
    if start == 0:
        check_cost(model, teacher, corpus, record, precision, is_confirmed=plan.is_confirmed)
        if 0 in milestones:
            keep(words_name(0), 0, model.state_dict())
    pads = pads_sequences(model, teacher, precision)
    make = functools.partial(make_update, corpus, config, pads=pads)
    steps = range(start, config.num_steps)
    meter, monitor = Meter(teacher.coding_time if teacher else None), DivergenceMonitor()
    with (
        RunLog(plan.directory, start, config.tracker) as log,
        cli.StopSignals() as signals,
        progress(config.num_steps, plan.directory.name, done=start, unit="update") as bar,
        prepared(make, steps, in_thread=device.type == "cuda") as updates,
    ):
        for step, update in zip(steps, updates, strict=True):
            if watch.has_stopped_improving():
                say(f"no better for {watch.evals_since_best} measurements: stopped after update {done}")
                break
            rate = set_learning_rate_(optimizers, step, config)
            if step == start:
                _say_if_ranks_have_no_work(update)
            for index, micro in distributed.shard([*enumerate(update.micro_batches)]):
                if signals.received:
                    break
                torch.manual_seed(seed_for("dropout", config.seed, step, index))
                with precision.autocast():
                    outcome = objective.loss(model, micro.to(device), teacher, config)
                precision.scaler.scale(outcome.loss / max(1, update.num_selected)).backward()
                meter.add(outcome.parts)
            if stop := distributed.all_reduce_max(signals.received or 0):  # this update is dropped
                if done > start:
                    save(done)
                raise cli.Stopped(stop, f"stopped after update {done}; continue with --resume")
            distributed.sum_gradients_(model.parameters())
            device_norm = step_(optimizers, precision.scaler, config.clip_norm)
            average.add(step)
            norm = float(device_norm)  # waits for the device, which has all of this update's work

            done = step + 1
            state["skipped_updates"] += monitor.add(norm)
            state["words_seen"] += update.num_words
            for words in milestones:
                if 0 <= state["words_seen"] - words < update.num_words:
                    keep(words_name(words), done, model.state_dict())
            meter.add_counts(update.num_selected, update.num_tokens)
            if problem := monitor.problem(precision.scaler):
                with distributed.rank_zero_first():
                    raise ValueError(
                        record_update(
                            plan.directory, problem, done, rate, model, update, teacher, config, precision
                        )
                    )
            if done % config.log_every == 0 or done == config.num_steps:
                values = meter.read()
                epoch = done * config.batch_size / len(corpus.training)
                log.write(
                    done, {**values, **state, "learning_rate": rate, "gradient_norm": norm, "epoch": epoch}
                )
                if (uses_K := meter.counts.get("dead_concepts")) is not None:
                    log.write_histogram("concept_use", uses_K, done)
                bar.set_postfix_str(_headline(values), refresh=False)
            bar.update()
            if watch.is_due(done):
                with meter.paused():
                    measure_heldout(done)
            if done % config.checkpoint_every == 0 or done == config.num_steps:
                save(done)
        heldout = "no text held out"
        if len(corpus.heldout):
            values = measure_heldout(done)
            if objective.predicts_words:
                shown = predictions(model.eval(), plan.tokenizer, corpus, MASKED.share)
                log.write_text("predictions", shown, done)
            heldout = "held-out " + _headline({n.removeprefix("heldout_"): v for n, v in values.items()})
        if average.mean:
            keep("average", done, model.state_dict() | average.mean)
    write_tensors(plan.directory / MODEL_FILE, model.state_dict())
    say(f"finished {plan.directory}: {heldout}")


def build_model(plan: Plan, checkpoint: Checkpoint | None, device: torch.device) -> LanguageModel:
    """The model to train, with the weights of the checkpoint, or else those that a run begins with."""
    config = plan.record.train
    model = LanguageModel(plan.record.model, seed=config.seed)
    if checkpoint is not None:
        load_weights_(model, checkpoint.model, "the checkpoint")
    elif plan.start is not None:
        weights = load_weights(plan.start, read_record(plan.start))
        say("initial weights: " + init_from_(model, weights, str(plan.start)))
    find_objective(config.objective).prepare_(model.to(device))
    model.encoder.recomputes_layers = config.activation_checkpointing
    return model


def _say_if_ranks_have_no_work(update: Update) -> None:
    """Print a hint if there are more processes than micro-batches for them."""
    num_micro_batches, num_processes = len(update.micro_batches), distributed.world_size()
    if num_micro_batches < num_processes:
        say(
            f"{num_processes} processes share {num_micro_batches} micro-batches an update, so some idle; "
            f"there are more with --token-budget {update.num_tokens // num_processes}"
        )


def _headline(values: dict[str, float]) -> str:
    names = {
        "cross_entropy": "loss",
        "token_accuracy": "accuracy",
        "concept_kl": "KL",
        "tokens_per_s": "tokens/s",
    }
    return " ".join(f"{short} {values[name]:.4g}" for name, short in names.items() if name in values)


def main(argv: list[str]) -> None:
    """Read the command line, make the plan, train."""
    given = parse_flags(flags(), argv)
    with distributed.rank_zero_first():
        plan = make_plan(given)
    with only_process(plan.directory):
        train(plan)


if __name__ == "__main__":
    cli.run(main)
