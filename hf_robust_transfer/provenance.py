"""How a model came to be: the one record behind its configuration, its training's record and its run's identity."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from .errors import UsageError
from .threat_model import ThreatModel, parse_eps


class _Record:
    """A dataclass that is kept as a JSON object; what a later version adds to it is passed over."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read it from a JSON object; fields that are missing there have their defaults.

        Raises:
            UsageError: it is no object, or a field is of another type.
        """
        if not isinstance(content, Mapping):
            raise UsageError(f"{cls.__name__} is a JSON object, not {content!r}")
        for name, kind in get_type_hints(cls).items():
            alternatives = get_args(kind) if isinstance(kind, UnionType) else [kind]
            allowed = tuple(get_origin(each) or each for each in alternatives) + ((int,) if kind is float else ())
            if name in content and not isinstance(content[name], allowed):
                raise UsageError(f"{name} {content[name]!r} of a {cls.__name__} record is of the wrong type")
        names = {each.name for each in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in content.items() if name in names})


@dataclass(frozen=True)
class Adapted(_Record):
    """What an adapter of peft was trained with.

    Args:
        method: its name in peft, like LORA.
        rank: of the updates, where the method has one.
        targets: the layers that were adapted, as they were named.
        whole: the layers that were trained whole.
        trained: how many parameters trained.
        parameters: how many the model has without adapters.
        base_model: what it started from: a Hub id, or a folder's name without its place.
    """

    method: str = "LORA"
    rank: int | None = None
    targets: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    trained: int = 0
    parameters: int = 0
    base_model: str | None = None


@dataclass(frozen=True)
class Origin(_Record):
    """The robust source that a model comes from, however many trainings ago.

    Args:
        name: among `hf_robust_transfer.modeling.source_list.SOURCES`.
        model_id: its Hub id, None for one that is on no Hub.
        url: where its file is to be had otherwise.
        revision: the commit on the Hub that it was downloaded at.
        file: its name there.
        sha256: of that file.
        license: a Hub identifier, None where it is not known.
        norm, eps: the threat model that it was trained for; ε is None where it is not known.
        reference: where it is described.
    """

    name: str = ""
    model_id: str | None = None
    url: str | None = None
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None
    license: str | None = None
    norm: str = "linf"
    eps: str | None = None
    reference: str = ""


@dataclass(frozen=True)
class TrainedFor(_Record):
    """What later evaluations go by, in a model's configuration under ``robust_training``.

    Args:
        norm: of the threat model.
        eps: its radius in [0, 1] pixels, as it was written; a configuration leaves it out where it is not known.
        seed: of the run, which the choice of its images followed from.
        data: the options that say where its images come from.
        hub_id: of the model on the Hub, where it was published.
        adapter: what an adapter of peft was trained with, as of `Adapted`, which is now in the weights.
        source: the robust source that the model comes from, as of `Origin`.

    Example:
        >>> TrainedFor.from_dict({"norm": "l2", "eps": "0.5"})
        TrainedFor(norm='l2', eps='0.5', seed=0, data=None, hub_id=None, adapter=None, source=None)
    """

    norm: str = "linf"
    eps: str = "8/255"
    seed: int = 0
    data: dict[str, Any] | None = None
    hub_id: str | None = None
    adapter: dict[str, Any] | None = None
    source: dict[str, Any] | None = None

    @property
    def origin(self) -> Origin | None:
        """The robust source that the model comes from, if that is known."""
        return None if self.source is None else Origin.from_dict(self.source)

    @classmethod
    def of(cls, config: Any) -> Self:
        """What a model's configuration says; the defaults where it says nothing.

        Raises:
            UsageError: it says something that cannot be.
        """
        content = getattr(config, "robust_training", None)
        try:
            record = cls.from_dict({} if content is None else content)
            ThreatModel(record.norm, parse_eps(record.eps))
            _ = record.origin
        except UsageError as error:
            raise UsageError(f"config.json: robust_training: {error}") from None
        if record.seed < 0:
            raise UsageError(f"config.json: robust_training: seed {record.seed} must be at least 0")
        return record


@dataclass(frozen=True)
class Provenance(_Record):
    """How a model was made, in ``training.json`` beside it.

    Args:
        fingerprint: of the model that this is about (`hf_robust_transfer.modeling.fingerprint`); of no other is it true.
        fingerprint_parts: what the fingerprint is made of, so that one can say what another model differs in.
        command: that made it, None where it was made from Python.
        base_model: what it started from, if that was trained already; a Hub id, or a folder's name without its place.
        base_model_id: the Hub id of that or, where it was trained here, of the nearest model before it that has one.
        data: all options of its data.
        dataset_id: the Hub id of its data.
        images: how many it was trained and validated on.
        training_images: a hash of those that it was trained on, and of their labels.
        options: of training, that change what is learned.
        halved_at: the steps at which training diverged, went back and halved its learning rate.
        teacher: whose logits it learned: ``name``, Hub ``id``, ``sha256`` of its weights, and the shares of some validation
            ``images`` that it classifies right as they are (``clean``) and under PGD of ``steps`` steps (``robust``).
        interpolated: of weights between those of two models, ``alpha`` and both ``models``: name, Hub id, fingerprint.
        processes, seconds, hardware, versions: what it ran on and with.
    """

    fingerprint: str | None = None
    fingerprint_parts: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    base_model: str | None = None
    base_model_id: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    dataset_id: str | None = None
    images: dict[str, int] = field(default_factory=dict)
    training_images: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    halved_at: list[int] = field(default_factory=list)
    teacher: dict[str, Any] = field(default_factory=dict)
    interpolated: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    seconds: float = 0.0
    hardware: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def options_that_affect(arguments: Any, *what: str) -> dict[str, Any]:
    """The options of a dataclass by what they affect, as each field's metadata says (``affects``; by default ``"model"``).

    Args:
        arguments: an instance of a dataclass of options.
        what: of ``"model"`` (what is learned; a run goes on with the same only), ``"length"`` (for how long; a run may go
            on with another), ``"run"`` (nothing of the model, yet a run goes on with the same only) and ``"nothing"``.

    Example:
        >>> @dataclass
        ... class Options:
        ...     rate: float = 0.1
        ...     folder: str = field(default="cache", metadata={"affects": "nothing"})
        >>> options_that_affect(Options(), "model")
        {'rate': 0.1}
    """
    return {
        option.name: getattr(arguments, option.name)
        for option in fields(arguments)
        if option.metadata.get("affects", "model") in what
    }
