"""A classifier as one file for whoever runs it without this package: ONNX, or what `torch.export` makes of it."""

import copy
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging as transformers_logging

from ..atomic import replacing
from ..data import to_pixels
from ..errors import UsageError
from ..modeling import PixelClassifier
from ..modeling.classifier import undo_mixed_precision, without_tf32
from ..modeling.fingerprint import fingerprint
from ..provenance import TrainedFor
from ..run_folder import ONNX_NAME, TORCH_NAME, check_writable, is_export

logger = transformers_logging.get_logger(__name__)

TOLERANCE = 1e-5  # of the largest logit, or of 1 where all are smaller
CHECKED_BATCHES = (1, 3, 8)
_FACTS = "facts.json"  # in a file of PyTorch, which is an archive
_LARGEST = 2**31 - 2**20  # bytes of an ONNX file, which is a message of protobuf


@dataclass(frozen=True)
class _Format:
    """What differs between the formats; `write` and `load` may raise what they like.

    Args:
        name: of the file, where a folder is named.
        needs: modules that are not among the package's own dependencies.
        write: a program and what to say of it, to a file.
        load: a function from pixels to logits, from a file.
        facts: what is said in a file.
    """

    name: str
    needs: tuple[str, ...]
    write: Callable[[ExportedProgram, dict[str, str], Path], None]
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    facts: Callable[[Path], dict[str, str]]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def check_needs(self) -> None:
        """Refuse to go on without the modules that this format needs."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise UsageError(
                f"files that end in {self.suffix} need {' and '.join(missing)}: pip install 'hf-robust-transfer[export]'"
            )


class Exported(NamedTuple):
    """An exported file, and by how much its logits differ from the model's at most."""

    file: Path
    difference: float


def export_classifier(classifier: PixelClassifier, output: str | Path, format: str = "onnx") -> Exported:
    """Write a classifier to one file that is run without this package and `transformers`, and check it before it is there.

    What is exported is float32 pixels (B, C, H, W) in [0, 1], for any B, to logits (B, classes), with the normalisation
    inside. The file says what it takes and gives, its labels, and the threat model that it was trained for: an ONNX file
    in the metadata of its session, one of `torch.export` in ``extra_files={"facts.json": ""}``.

    Args:
        classifier: any; it stays as it is, a copy in float32 and in eval mode is exported.
        output: as for `export_file`.
        format: ``"onnx"`` (the extra ``export`` is needed) or ``"torch"``, of `torch.export`.

    Raises:
        UsageError: whatever `export_file` raises; the model cannot be exported; or the file, run in onnxruntime or loaded
            by PyTorch on random pixels at several batch sizes, gives logits that differ by more than 1e-5 of the largest.
            Then nothing is left behind.

    Example:
        >>> classifier = PixelClassifier(*load_model("outputs/mine"))  # doctest: +SKIP
        >>> export_classifier(classifier, "mine.onnx").difference < 1e-5  # doctest: +SKIP
        True
    """
    file, kind = export_file(output, format), FORMATS[format]
    classifier = classifier.merged()  # adapters of peft
    model = copy.deepcopy(classifier.model)
    undo_mixed_precision(model)
    copied = PixelClassifier(model.float().cpu().eval(), classifier.processor).eval()
    if format == "onnx" and (size := sum(tensor.nbytes for tensor in model.state_dict().values())) > _LARGEST:
        raise UsageError(f"{size / 1e9:.1f} GB of weights are more than one ONNX file holds: use --format torch")
    shape = tuple(to_pixels(classifier.processor)(Image.new("RGB", (256, 256))).shape)
    try:
        with _quietly(), torch.no_grad(), without_tf32(), _folder_for(file), replacing(file) as part:
            kind.write(_program(copied, shape), _facts(copied, shape), part)
            difference = _difference(kind.load(part), copied, shape)
            if not difference <= TOLERANCE:  # nor NaN
                raise UsageError(f"the file gives other logits than the model: {difference:.1e} of the largest")
    except Exception as error:  # tracing and converting raise whatever they like
        reason = str(error).strip().partition("\n")[0]
        reason = reason if isinstance(error, UsageError) else f"{type(error).__name__}: {reason}"
        raise UsageError(f"{_name(model)} cannot be exported with --format {format}: {reason}") from error
    return Exported(file, difference)


def export_file(output: str | Path, format: str) -> Path:
    """The file that an export is written to, made sure that it can be; nothing is made yet.

    Args:
        output: a file that ends as the format's do (``.onnx``, ``.pt2``), or else a folder, where it is called
            ``model.onnx`` or ``model.pt2``.
        format: one of `FORMATS`.

    Raises:
        UsageError: an unknown format, one that needs what is not installed, or a file that is there, is another format's
            by its ending, or cannot be written.

    Example:
        >>> export_file("outputs/mine", "torch").as_posix()
        'outputs/mine/model.pt2'
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format} is unknown: use {' or '.join(FORMATS)}")
    if not str(output):
        raise UsageError("--output is empty: name a file or a folder")
    kind, file = FORMATS[format], Path(output)
    for name, other in FORMATS.items():
        if other is not kind and file.suffix == other.suffix and not file.is_dir():
            raise UsageError(f"--output {output} ends as a file of --format {name} does, but --format is {format}")
    if file.suffix != kind.suffix or file.is_dir():
        file = file / kind.name
    check_writable(file.parent, "--output")
    if file.exists():
        raise UsageError(f"--output {file} exists: delete it, or choose another file")
    kind.check_needs()
    return file


def exports_of(folder: Path, identity: str) -> list[str]:
    """The names of the exported files in a folder that are of one model; a warning tells of all others.

    Args:
        folder: where they lie.
        identity: the model's `hf_robust_transfer.modeling.fingerprint`.
    """
    names = []
    for file in sorted(folder.iterdir()):
        if not is_export(file.name) or not file.is_file():
            continue
        kind = next(each for each in FORMATS.values() if file.suffix == each.suffix)
        try:
            kind.check_needs()
            found = kind.facts(file).get("fingerprint")
        except Exception as error:  # damaged files raise whatever they like
            logger.warning(f"{file} does not count, as it cannot be read: {str(error).partition(chr(10))[0]}")
            continue
        if found == identity:
            names.append(file.name)
        else:
            logger.warning(f"{file} does not count: it was not exported from the model in this folder")
    return names


def how_to_run(name: str, repo_id: str, shape: tuple[int, ...]) -> str:
    """The lines of Python that run an exported file of a repository on the Hub on ``pixels``.

    Args:
        name: of the file there.
        repo_id: of the repository.
        shape: (C, H, W) of an image.
    """
    file = f'hf_hub_download("{repo_id}", {json.dumps(name)})'
    pixels = f"  # float32 (batch, {', '.join(map(str, shape))})"
    if name.endswith(FORMATS["onnx"].suffix):
        return (
            "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n\n"
            f"session = onnxruntime.InferenceSession({file})\n"
            f'(logits,) = session.run(None, {{"pixels": pixels}}){pixels}'
        )
    return (
        "import torch\nfrom huggingface_hub import hf_hub_download\n\n"
        f"model = torch.export.load({file}).module()\nlogits = model(pixels){pixels}"
    )


def _name(model: Any) -> str:
    return getattr(model.config, "architecture", None) or type(model).__name__


def _program(classifier: PixelClassifier, shape: tuple[int, ...]) -> ExportedProgram:
    """The classifier as a graph, for any number of images."""
    # The fused kernels of attention have layouts of their own, in which later steps of exporting find no way.
    with sdpa_kernel(SDPBackend.MATH):
        program = torch.export.export(classifier, (torch.rand(2, *shape),), dynamic_shapes=({0: Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names places of this machine
    return program


def _facts(classifier: PixelClassifier, shape: tuple[int, ...]) -> dict[str, str]:
    """What a file says of itself: texts, or JSON."""
    config: Any = classifier.model.config
    facts = {
        "input": f"pixels, float32 (batch, {', '.join(map(str, shape))}) in [0, 1]; the normalisation is inside",
        "output": f"logits, float32 (batch, {len(classifier.labels)}), in the order of the labels",
        "labels": json.dumps(classifier.labels, ensure_ascii=False),
        "input_size": json.dumps(shape),
        "architecture": _name(classifier.model),
        "fingerprint": fingerprint(classifier.model, classifier.processor),
        "made_with": f"hf-robust-transfer {version('hf-robust-transfer')}, torch {torch.__version__}",
    }
    trained = TrainedFor.of(config)
    if "eps" not in (getattr(config, "robust_training", None) or {}):
        return facts
    return facts | {"norm": trained.norm, "eps": trained.eps}


def _difference(run: Callable[[Tensor], Tensor], classifier: PixelClassifier, shape: tuple[int, ...]) -> float:
    """The largest difference from the classifier's logits, by the largest of them or by 1, on random pixels."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for count in CHECKED_BATCHES:
        pixels = torch.rand(count, *shape, generator=generator)
        expected, found = classifier(pixels), run(pixels)
        if (found.shape, found.dtype) != (expected.shape, torch.float32):
            raise UsageError(f"the file gives {found.dtype} {tuple(found.shape)} for a batch of {count}")
        differences.append((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())


@contextmanager
def _folder_for(file: Path) -> Iterator[None]:
    """Make the folder of a file; where what follows fails, what was made of it is taken away."""
    made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            folder.rmdir()
        raise


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the notes that exporting writes for its developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write_onnx(program: ExportedProgram, facts: dict[str, str], file: Path) -> None:
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    if made is None:
        raise UsageError("torch.onnx made nothing of it")
    made.model.metadata_props.update(facts)
    made.save(file, external_data=False)


def _load_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def _onnx_facts(file: Path) -> dict[str, str]:
    import onnx

    return {each.key: each.value for each in onnx.load(file, load_external_data=False).metadata_props}


def _write_torch(program: ExportedProgram, facts: dict[str, str], file: Path) -> None:
    with file.open("w+b") as opened:
        torch.export.save(program, opened, extra_files={_FACTS: json.dumps(facts)})


def _load_torch(file: Path) -> Callable[[Tensor], Tensor]:
    with file.open("rb") as opened:
        return torch.export.load(opened).module()


def _torch_facts(file: Path) -> dict[str, str]:
    with zipfile.ZipFile(file) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(f"/{_FACTS}"))
        return dict(json.loads(archive.read(name)))


FORMATS = {
    "onnx": _Format(ONNX_NAME, ("onnx", "onnxruntime", "onnxscript"), _write_onnx, _load_onnx, _onnx_facts),
    "torch": _Format(TORCH_NAME, (), _write_torch, _load_torch, _torch_facts),
}
"""The formats, by the name of ``--format``; a further one is a further row."""
