#!/usr/bin/env python3
"""Exports a training run, or what eval has measured, to TensorBoard, Weights & Biases and MLflow.

    export_log.py out --tensorboard runs                          # then: tensorboard --logdir runs
    export_log.py out --mlflow mlruns                             # then: mlflow ui --backend-store-uri mlruns (*)
    export_log.py out --wandb .                                   # then: wandb sync FOLDER, as the message says
    export_log.py out --metrics metrics.json --tensorboard runs   # and what eval --json has written

The run is a folder of train_distill, or the log.jsonl in one. Its options become the run's parameters. What eval has
measured is put at the last step. Nothing that is there already is changed. Only --wandb needs a package, wandb.

(*) Newer versions of MLflow want MLFLOW_ALLOW_FILE_STORE=true in the environment, or once `mlflow migrate-filestore`.
"""
import argparse
import contextlib
import datetime
import os
import shlex
import sys

import files
from logs import folder, mlflow_store, run as runs, tensorboard, wandb_run

PROGRAM = "export_log.py"


def date(text):
    """Seconds since 1970 of a date and time."""
    try:
        seconds = datetime.datetime.fromisoformat(text)
        seconds = seconds.replace(tzinfo=seconds.tzinfo or datetime.timezone.utc).timestamp()
    except (ValueError, OverflowError):
        seconds = -1
    if seconds < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a date and time since 1970, such as 2026-01-31T18:00:00")
    return seconds


def label(text):
    """A name that is a folder's, too."""
    if not text or not text.isprintable() or "/" in text or text[0] == "." or len(text.encode()) > 200:
        raise argparse.ArgumentTypeError(f"'{files.printable(text)}' is not a name of printable characters without a "
                                         f"slash, of at most 200 bytes, that begins with no dot")
    return text


def find(args):
    """(path of the log or None, name of the run)"""
    log = os.path.join(args.run, "log.jsonl") if args.run and os.path.isdir(args.run) else args.run
    if log and not os.path.exists(log):
        raise files.FormatError(f"There is no {log}; name a folder that train_distill has written, or its log.jsonl.")
    name = args.name
    if not name:
        path = os.path.realpath(log or args.metrics)
        name = os.path.basename(os.path.dirname(path)) if log else os.path.splitext(os.path.basename(path))[0]
        try:
            label(name)
        except (argparse.ArgumentTypeError, ValueError):
            raise files.FormatError(f"The folder's name, {name}, cannot be the run's; give it one with --name.")
    return log, name


def export(run, args):
    """Writes all that is asked for; all of it, or nothing where a name is taken."""
    with contextlib.ExitStack() as stack:
        staged = []

        def stage(store, *arguments):
            args.writing = store  # for the message of an error
            staged.append(stack.enter_context(folder.Staged(store, *arguments)))
            return staged[-1].folder

        if args.tensorboard:
            tensorboard.write(run, stage(args.tensorboard, run.name))
        if args.mlflow:
            experiment = mlflow_store.experiment_id(args.mlflow, run.project)
            at = stage(args.mlflow, os.path.join(experiment, mlflow_store.run_id(run)))
            mlflow_store.write(run, at, args.mlflow, experiment)
        if args.wandb:
            wandb_run.write(run, stage(args.wandb, wandb_run.folder_name(run), wandb_run.same))
        for s in staged:
            s.check()
        if args.mlflow:
            mlflow_store.write_experiments(args.mlflow, experiment, run.project)
        for s in staged:
            s.publish()
            found = ", ".join((runs.many(len(run.rows), "step"), runs.many(len(run.names()), "metric"),
                               runs.many(len(run.options), "option")))
            print(f"{files.printable(s.path)}: {'there already, unchanged' if s.there else found}", file=sys.stderr)
        if args.wandb:
            print(f"To upload it: wandb sync {files.printable(shlex.quote(staged[-1].path))}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of a run, or its log.jsonl")
    parser.add_argument("--metrics", metavar="FILE", help="what eval --json has written")
    parser.add_argument("--tensorboard", metavar="DIR", help="writes the event file DIR/NAME/events.*")
    parser.add_argument("--wandb", metavar="DIR", help="writes the offline run DIR/wandb/offline-run-*")
    parser.add_argument("--mlflow", metavar="DIR", help="adds the run to the file store DIR")
    parser.add_argument("--name", type=label, help="name of the run (default: that of its folder)")
    parser.add_argument("--project", type=label, default="tikz.c",
                        help="project in Weights & Biases, experiment in MLflow (default tikz.c)")
    parser.add_argument("--start", type=date, metavar="TIME",
                        help="when the run began, in UTC unless TIME says otherwise (default: the first time in the "
                             "log, else 1970, so that the same log gives the same files)")
    args = parser.parse_args()
    if not (args.run or args.metrics):
        parser.error("name a RUN, or --metrics FILE, or both")
    if not (args.tensorboard or args.wandb or args.mlflow):
        parser.error("say where to: --tensorboard DIR, --wandb DIR, --mlflow DIR")
    try:
        log, name = find(args)
        run = runs.Run(args.project, name)
        for warning in runs.read(run, log, args.metrics, args.start):
            print(f"{PROGRAM}: warning: {files.printable(warning)}", file=sys.stderr)
        export(run, args)
    except files.FormatError as e:
        files.fail(PROGRAM, e)
    except OSError as e:
        files.fail(PROGRAM, f"{files.describe(e, getattr(args, 'writing', None))}.")
    except KeyboardInterrupt:
        sys.exit(f"{PROGRAM}: interrupted; no export is left incomplete.")


if __name__ == "__main__":
    main()
