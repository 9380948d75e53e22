"""The commands of `sgdap`; each loads what it is given and calls the function of its name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Makes trained Keras models smaller.",
    epilog="Exit status: 0 done, 1 the input makes no sense, 2 usage, 3 a limit was missed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(help="A .keras or .sgdap file, or module:function.")]
Data = Annotated[
    str,
    typer.Option(
        help="An .npz or .csv file, a folder of images or of a saved tf.data dataset, tfds:NAME or "
        "module:function."
    ),
]
MaybeData = Annotated[str | None, typer.Option("--data", help="As in sgdap compress.")]
Scale = Annotated[float, typer.Option(help="What inputs are divided by: 255 for bytes of images.")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="Load lambdas of .keras files: runs code.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"sgdap {importlib.metadata.version('sgdap')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None: ...


@app.command(epilog="Example: sgdap compress model.keras mobile-int8 --data train.npz --out small")
def compress(
    model: Model,
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, or mobile-int8, tiny-flash, server-latency or sparse-2:4. Left out "
            "with --budget: the stages are searched for."
        ),
    ] = None,
    *,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the model, the report and the files.")],
    validation_data: Annotated[str | None, typer.Option(help="Data to judge on.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="What the model may cost: bytes=0.1, or flops=0.3,bytes=4000."),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="The most that the accuracy may fall, such as 0.005.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each stage that trains.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch of training.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed for every random choice.")] = 0,
    scale: Scale = 1.0,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Runs the stages of a recipe, one after another."""
    import sgdap
    from sgdap.cli.inputs import data_named, holds_validation, model_named

    limits = None if budget is None else sgdap.Budget(**_limits(budget))
    whole = model_named(model, unsafe)
    judged = validation_data or (data if holds_validation(data) else None)
    made = sgdap.compress(
        whole,
        recipe,
        data_named(data, whole, scale),
        validation_data=None if judged is None else data_named(judged, whole, scale, judged=True),
        budget=limits,
        max_accuracy_drop=max_accuracy_drop,
        epochs="auto" if epochs is None else epochs,
        batch_size=batch_size,
        seed=seed,
        workdir=out,
        verbose=0 if as_json else 1,
    )
    made.model.save(out / "model.keras")
    if as_json:
        print(made.report.to_json())
    if made.report.missed or any(stage.done is None for stage in made.report.stages):
        raise typer.Exit(3)


@app.command(epilog="Example: sgdap prune model.keras slim.keras --data train.npz --flops 0.3")
def prune(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The .keras file to write.")],
    *,
    data: Data,
    flops: Annotated[float | None, typer.Option(help="FLOPs to keep, a share or a number.")] = None,
    params: Annotated[float | None, typer.Option(help="Parameters to keep.")] = None,
    distill: Annotated[bool, typer.Option(help="Learn the dense model's answers after.")] = True,
    scale: Scale = 1.0,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Removes channels in one shot; no labels are needed."""
    import sgdap
    from sgdap.cli.inputs import data_named, model_named

    _check_place(out, ".keras")
    whole = model_named(model, unsafe)
    read = data_named(data, whole, scale)
    budget = None if flops is None and params is None else sgdap.Budget(flops=flops, params=params)
    plan = sgdap.plan(whole, read, budget, verbose=0 if as_json else 1)
    inputs = (read[0],) if isinstance(read, tuple) else read
    slim = sgdap.apply(whole, plan, distill_data=inputs if distill else None)
    slim.save(out)
    told = {"params": plan.params, "flops": plan.flops, "widths": plan.widths, "path": str(out)}
    print(json.dumps(told) if as_json else plan)


@app.command(epilog="Example: sgdap inspect model.keras --picture channels.png")
def inspect(
    model: Model,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw the layers, into this file (.png, .svg).")
    ] = None,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Shows which channels of a model leave together."""
    import sgdap
    from sgdap.cli.inputs import model_named

    found = sgdap.inspect(model_named(model, unsafe))
    if as_json:
        groups = [
            {"name": g.name, "size": g.size, "layers": list(g.producers), "kept": list(g.reasons)}
            for g in found.graph.groups
        ]
        print(json.dumps(groups))
    else:
        print(found)
    if picture:
        found.plot().savefig(picture, dpi=150)


@app.command(epilog="Example: sgdap profile model.keras")
def profile(
    model: Model,
    data: MaybeData = None,
    scale: Scale = 1.0,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Counts parameters and FLOPs; measures the time."""
    import sgdap
    from sgdap.cli.inputs import data_named, model_named

    whole = model_named(model, unsafe)
    found = sgdap.profile(whole, None if data is None else data_named(data, whole, scale))
    print(json.dumps(dataclasses.asdict(found)) if as_json else found)


@app.command(epilog="Example: sgdap compare model.keras small/model.keras --data test.npz")
def compare(
    a: Model,
    b: Model,
    data: MaybeData = None,
    scale: Scale = 1.0,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Compares what two models cost, and with data what they score."""
    from sgdap.cli.inputs import data_named, model_named
    from sgdap.compression.measuring import measures

    told = {}
    for name in (a, b):
        model = model_named(name, unsafe)
        read = None if data is None else data_named(data, model, scale, judged=True)
        cost, _ = measures(model, read, _score(model, read))
        told[name] = dataclasses.asdict(cost)
    print(json.dumps(told) if as_json else _side_by_side(told))


@app.command(epilog="Example: sgdap export model.keras small.tflite --quantize int8 --data x.npz")
def export(
    model: Model,
    path: Annotated[Path, typer.Argument(help="A .tflite, .onnx, .xml or .keras file or folder.")],
    data: MaybeData = None,
    quantize: Annotated[
        str | None, typer.Option(help="float32, float16, dynamic, int8 or int4, for LiteRT.")
    ] = None,
    scale: Scale = 1.0,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Writes a file for another runtime, and checks it."""
    import sgdap
    from sgdap.cli.inputs import data_named, model_named

    whole = model_named(model, unsafe)
    read = None if data is None else data_named(data, whole, scale)
    report = sgdap.export(whole, path, quantize=quantize, data=read, verbose=0)
    told = {**dataclasses.asdict(report), "path": str(path)}
    print(json.dumps(told) if as_json else report)


@app.command(epilog="Example: sgdap pack small.keras small.sgdap")
def pack(
    model: Model,
    path: Annotated[Path, typer.Argument(help="The .sgdap file to write.")],
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Writes a model of few bits as a small file."""
    import sgdap
    from sgdap.cli.inputs import model_named

    _check_place(path, "")
    size = sgdap.pack(model_named(model, unsafe), path)
    print(json.dumps({"path": str(path), "bytes": size}) if as_json else f"{path}: {size:,} bytes")


@app.command(epilog="Example: sgdap unpack small.sgdap model.keras")
def unpack(
    path: Annotated[Path, typer.Argument(help="The .sgdap file.")],
    out: Annotated[Path, typer.Argument(help="The .keras file to write.")],
    as_json: AsJson = False,
) -> None:
    """Writes a packed model as a .keras file."""
    import sgdap

    _check_place(out, ".keras")
    sgdap.unpack(path).save(out)
    print(json.dumps({"path": str(out)}) if as_json else f"{out} is written.")


@app.command(epilog="Example: sgdap bench small.tflite")
def bench(
    file: Annotated[Path, typer.Argument(help="A .tflite, .onnx, .xml or .keras file or folder.")],
    batch_size: Annotated[int, typer.Option(help="Samples, where the file leaves that open.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Times an exported file in its runtime, on random inputs."""
    from sgdap.exporting.bench import bench as timed

    found = timed(file, batch_size)
    print(json.dumps({**dataclasses.asdict(found), "path": str(file)}) if as_json else found)


@app.command(epilog="Example: sgdap demo --arch caffe")
def demo(
    arch: Annotated[str, typer.Option(help="lenet5 or caffe.")] = "lenet5",
    out: Annotated[str, typer.Option(help="Folder for models and figure.")] = "runs/demo",
    data: Annotated[
        str | None,
        typer.Option(help="MNIST as an .npz in Keras' format (default: SGDAP_MNIST, …)."),
    ] = None,
    flops: Annotated[float, typer.Option(help="FLOPs to keep, a fraction.")] = 0.3,
    params: Annotated[float, typer.Option(help="Parameters to keep, a fraction.")] = 0.3,
    epochs: Annotated[int, typer.Option(help="Epochs of the dense training.")] = 4,
    prune_epochs: Annotated[int, typer.Option(help="Epochs of the pruning run.")] = 7,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Trains LeNet-5 on MNIST and prunes it in fit."""
    from sgdap.demo import run_demo

    run_demo(
        arch,
        out,
        path=data,
        flops=flops,
        params=params,
        epochs=epochs,
        prune_epochs=prune_epochs,
        seed=seed,
    )


def _check_place(path: Path, suffix: str) -> None:
    """Raises if no file of this kind can be written there: before the work, not after it."""
    if suffix and path.suffix != suffix:
        raise ValueError(f"{path} is to be a {suffix} file. Give it that ending.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}. Make it first.")


def _limits(text: str) -> dict[str, Any]:
    """The limits of a budget as they are typed."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in ("flops", "params", "bytes", "latency", "batch_size", "runtime"):
            raise typer.BadParameter(
                f"--budget takes flops, params, bytes, latency, batch_size and runtime: '{part}'"
            )
        try:
            found[name] = int(value) if name == "batch_size" else float(value)
        except ValueError:
            found[name] = value  # "5ms", the name of a runtime
    return found


def _score(model: Any, data: Any) -> float | None:
    from sgdap.compression.work import make_judge

    if not model.compiled or data is None or (isinstance(data, tuple) and len(data) < 2):
        return None
    if isinstance(data, tuple):
        data = (data[0], data[1], None)
    return make_judge(model, data).score(model)


def _side_by_side(told: dict[str, dict[str, Any]]) -> str:
    from sgdap._table import table_text, terminal_width

    first, second = told.values() if len(told) == 2 else (*told.values(), *told.values())
    rows = []
    for name in first:
        a, b = first[name], second[name]
        if a is None or b is None:
            continue
        if name == "latency":
            name, a, b = "ms", 1e3 * a, 1e3 * b
        ratio = f"{b / a:.1%}" if a else ""
        cells = [f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for v in (a, b)]
        rows.append(([[name]], [*cells, ratio], ""))
    return table_text(
        " and ".join(told),
        ["what"],
        ["first", "second", "second / first"],
        "",
        rows,
        [],
        terminal_width(100),
    )
