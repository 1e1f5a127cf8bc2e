"""Parameters: the sections of params.yaml, each checked when it is read, with the preset in use applied on top."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from relinv.checking import parse
from relinv.errors import UserError, unknown
from relinv.files import read_yaml
from relinv.plugins import plugin_names
from relinv.settings import (
    BaseSettings,
    DrawingSettings,
    ExemplarSource,
    GenerateSettings,
    JudgeSettings,
    ModelSettings,
    Name,
    Names,
    NetworkSettings,
    ScenarioSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
Presets = dict[str, dict[str, dict[str, Any]]]  # what each preset changes, by method and preset
MAIN = "params.yaml"
SECTIONS = ("base", "bases", "relations", "methods", "exemplars", "validate", "invert", "generate", "score", "report",
            "presets")  # fmt: skip
OF_ALL_METHODS = ("seed", "preview", "preset")  # in `invert`, beside a section for each method
ABSENT = object()  # in place of a value that a file does not have, where null is one


class Params:
    """The parameters of one run; a section is checked when it is read, and `sections_read` remembers which.

    Parts of a section read whole are not named besides. DVC re-runs a stage when a section it names changes, so a test
    compares `sections_read` with dvc.yaml.
    """

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        self._values = values
        self.file = file
        self.sections_read: set[str] = set()

    def section(self, name: str, kind: TypeForm[T]) -> T:
        """Return the value at a dotted name ("generate", "invert.seed"), checked against `kind`.

        Raises UserError if it is missing or does not fit `kind`.
        """
        value = self._checked(name, kind)
        if not any(name.startswith(f"{whole}.") for whole in self.sections_read):
            self.sections_read.add(name)
        return value

    def names(self, section: str) -> list[str]:
        """Return the names in a section, "" meaning the whole file; none if it is not a section."""
        values = self._value(section)
        return [str(name) for name in values] if isinstance(values, Mapping) else []

    def require_known(self, section: str, known: Collection[str]) -> None:
        """Raise UserError, with the closest known name, if a section ("": the whole file) has a name not in `known`."""
        for name in self.names(section):
            if name not in known:
                place = f"{section}.{name}" if section else name
                raise UserError(f"{unknown('parameter', name, known)} It stands in {self.file} as '{place}'.")

    def method(self, name: str, kind: type[T]) -> T:
        """Return the section `invert.NAME`, with the changes of the preset in use, checked against `kind`.

        Raises UserError if either is missing or does not fit `kind`, and for an unknown preset.
        """
        values = self.section(f"invert.{name}", dict[str, Any])
        own = parse(kind, values, f"invert.{name}", self.file)  # first: no fault of it is blamed on the preset
        if (preset := self.preset()) is None:
            return own
        presets = self.section(f"presets.{name}", dict[str, dict[str, Any]])
        if values and preset not in presets:
            raise UserError(
                f"The preset '{preset}' says nothing of '{name}': add 'presets.{name}.{preset}' to {self.file}, with "
                "what it changes, or {} for nothing."
            )
        return parse(kind, values | presets.get(preset, {}), f"presets.{name}.{preset}", self.file)

    def preset(self) -> str | None:
        """Return the name of the preset in use, chosen for all methods or by the base; None if none is.

        Raises UserError if no method has such a preset.
        """
        chosen = self.section("invert.preset", Name | None)
        preset = chosen or self.section(f"bases.{self.base()}.preset", Name | None)
        if preset and preset not in (known := {name for of_method in self.presets.values() for name in of_method}):
            raise UserError(f"{unknown('preset', preset, known)} They stand in {self.file} as 'presets.METHOD.NAME'.")
        return preset

    @cached_property
    def presets(self) -> Presets:
        """Return what each preset changes, for checks: a result depends on the section of its method alone."""
        return self._checked("presets", Presets)

    def require_effect(self, names: Iterable[str]) -> None:
        """Raise UserError if a parameter among `names` cannot change anything in this run.

        These are a method's own that the preset in use sets too, and those of other presets.
        """
        for name in names:
            match name.split("."):
                case ["presets", _, other, *_] if other != (preset := self.preset()):
                    used = f"the preset in use is '{preset}'" if preset else "no preset is in use"
                    raise UserError(f"'{name}' would change nothing: {used}; set invert.preset to '{other}'.")
                case ["invert", method, key, *_] if preset := self.preset():
                    if key in self.presets.get(method, {}).get(preset, {}):
                        place = name.removeprefix(f"invert.{method}.")
                        raise UserError(
                            f"'{name}' would change nothing: the preset '{preset}' sets it; write "
                            f"presets.{method}.{preset}.{place}."
                        )

    def require_unchanged(self) -> None:
        """Raise UserError if what was read of the file is not what stands there now."""
        now = read_params(self.file)
        changed = [name for name in sorted(self.sections_read) if now._value(name) != self._value(name)]
        if changed:
            raise UserError(
                f"Parameters were changed while this ran, so the result is not theirs: {', '.join(changed)}. Put them "
                "back, or leave them, and run the same command again."
            )

    def _checked(self, name: str, kind: TypeForm[T]) -> T:
        """Return what `section` does, but do not remember it: for a check that decides no result."""
        if (value := self._value(name)) is ABSENT:
            raise UserError(f"Parameter '{name}' is missing from {self.file}: add it.")
        return parse(kind, value, name, self.file)

    def _value(self, name: str) -> Any:
        """Return the value at a dotted name, "" meaning the whole file; `ABSENT` if there is none."""
        value: Any = self._values
        for part in name.split(".") if name else ():
            value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
        return value

    def base(self) -> str:
        """Return the name of the base in use; UserError if `bases` has no such entry."""
        base = self.section("base", str)
        if "." in base:
            raise UserError(
                f"The base '{base}' cannot have a dot in its name: write sd1_5 for sd1.5, here and in bases."
            )
        bases = parse(dict[str, Any], self._values.get("bases"), "bases", self.file)
        if base not in bases:
            raise UserError(f"{unknown('base', base, bases)} It stands in {self.file} as 'base'.")
        return base

    def model(self) -> ModelSettings:
        """Return the diffusion model of the base in use."""
        return ModelSettings(**self.section(f"bases.{self.base()}.model", NetworkSettings).model_dump())

    def trained_model(self) -> ModelSettings:
        """Return the diffusion model of the base in use, set up for training."""
        training = self.section(f"bases.{self.base()}.training", TrainingSettings)
        return self.model().model_copy(update=dict(training))

    def drawing_model(self) -> ModelSettings:
        """Return the diffusion model of the base in use, set up for drawing."""
        sampling = self.section(f"bases.{self.base()}.sampling", DrawingSettings)
        model = self.model()
        return model.model_copy(update={"precision": sampling.precision or model.precision})

    def judge(self) -> JudgeSettings:
        """Return the judge of the base in use."""
        return self.section(f"bases.{self.base()}.judge", JudgeSettings)

    def generation(self) -> GenerateSettings:
        """Return what is drawn, and how the base in use draws."""
        scenarios = self.section("generate", ScenarioSettings)
        sampling = self.section(f"bases.{self.base()}.sampling", DrawingSettings)
        return GenerateSettings(**scenarios.model_dump(), **sampling.model_dump(exclude={"precision"}))

    def exemplar_source(self) -> ExemplarSource:
        """Return where the exemplars of the base in use come from."""
        return self.section(f"bases.{self.base()}.exemplars", ExemplarSource)

    def benchmark(self) -> Path:
        """Return the benchmark file of the base in use."""
        return self.section(f"bases.{self.base()}.benchmark", Path)

    def relations(self) -> list[str]:
        """Return the names of the relations to work on."""
        return self.section("relations", Names)

    def methods(self) -> list[str]:
        """Return the names of the methods to compare."""
        return self.section("methods", Names)


def preset_in_use(values: Mapping[str, Any]) -> str | None:
    """Return the preset that the nested parameters of any revision choose, unchecked, as `Params.preset` does."""
    invert, base = values.get("invert") or {}, (values.get("bases") or {}).get(values.get("base")) or {}
    return invert.get("preset") or base.get("preset")


def read_params(file: Path) -> Params:
    """Return the parameters in `file`, whatever their names; UserError if it is missing, not YAML, or not a mapping."""
    values = read_yaml(file, "parameter file", "run this in the checkout of the pipeline")
    if not isinstance(values, Mapping):
        raise UserError(f"The parameter file '{file}' holds no named sections: restore it from git.")
    return Params(values, file)


def load_params(file: Path | str = MAIN) -> Params:
    """Return the pipeline's parameters in `file`; UserError as for `read_params`, and for a section that nothing reads.

    The content of a section is checked by the stage that reads it.
    """
    params = read_params(Path(file))
    params.require_known("", SECTIONS)
    params.require_known("invert", [*OF_ALL_METHODS, *(methods := plugin_names("relinv.methods"))])
    params.require_known("presets", methods)
    for base in params.names("bases"):
        params.require_known(f"bases.{base}", BaseSettings.model_fields)
    return params


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as {dotted name: value}; lists and empty sections stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
