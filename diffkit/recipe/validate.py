"""Load and validate a recipe: sections and components, required plugins, and the fit of the parts to each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from ..codec import CodecRecord
from ..data import DataSpec, MapDataset
from ..errors import ArgumentError, DiffkitError, PluginError, RecipeError
from ..host import Plugin, registry
from .checks import CHECKS, CLASSIFIER_CHECKS, CODEC_CHECKS, Check, View, check
from .condition_checks import CONDITION_CHECKS
from .construct import CONDITIONS, INJECTED, Trial, in_order
from .errors import did_you_mean, nearest, quote
from .load import Source, raise_all, read, with_preset
from .resolve import Resolver
from .signature import DATASET, Resolved
from .spec import TASK, ClassifierRecipe, CodecRecipe, DiffusionRecipe, Recipe, recipe_class

CHECKS_OF: Mapping[type[Recipe], tuple[Check, ...]] = {
    DiffusionRecipe: (*CHECKS, *CONDITION_CHECKS),
    CodecRecipe: CODEC_CHECKS,
    ClassifierRecipe: CLASSIFIER_CHECKS,
}
"""The checks of the recipes of each task."""


def load_recipe(
    source: Source,
    overrides: Iterable[str] = (),
    *,
    dataset: MapDataset | None = None,
    spec: DataSpec | None = None,
    record: CodecRecord | None = None,
) -> Recipe:
    """Read and validate a recipe.

    Every component that it names is imported and built once, networks without memory; data files need not exist.

    Args:
        source: a file, the name of a built-in recipe, a YAML text of several lines, or a mapping.
        overrides: texts `path=value`, applied in turn.
        dataset: the examples, for a recipe whose `data.name` is `dataset`; default: none.
        spec: the recorded spec of the data, so that the data is read only if its examples are; default: that of the
            data itself.
        record: the record of the codec of a run, so that its source need not exist; default: none.

    Returns:
        The recipe, from which `assemble` makes the objects.

    Raises:
        RecipeError: its `errors` are all faults that were found, each with its place; its `exit_code` is 4 if only
            plugins are at fault.
        ArgumentError: `dataset` has no length or no index.
    """
    if dataset is not None and not isinstance(dataset, MapDataset):
        fix = "pass an object with __len__ and __getitem__; a stream has no length"
        raise ArgumentError.of("argument `dataset`", "a data set", dataset, fix)
    text, root = read(source, overrides)
    root = with_preset(root)
    resolver = Resolver(root)
    cls = recipe_class(root)
    recipe = resolver.read(cls)
    what = f"{root.mark.file} is not a valid recipe"
    raise_all([fault for fault in resolver.faults if fault.where and fault.where.path == TASK], what)
    components = in_order(resolver.components)
    chosen = root.at(CONDITIONS) if cls is DiffusionRecipe else None
    every = chosen is None or chosen.value is None
    failed = set() if every or CONDITIONS in resolver.values else {"shape"}
    needed = {path for path in INJECTED if path.partition(".")[0] in cls.model_fields}
    trial = Trial(failed | needed - {one.path for one in components}, spec, record)
    if dataset is not None:
        trial.scope[DATASET] = dataset
    predicts = resolver.values.get(CONDITIONS) if cls is ClassifierRecipe else None
    trial.build_all(
        components,
        resolver.values.get("seed", 0),
        all_conditions=every,
        predicts=predicts,
        conditioned=cls is DiffusionRecipe,
    )
    shared = trial.scope.get("shape"), trial.scope.get(CONDITIONS)
    entries = {one.path: one.entries for one in components}
    view = View(root, resolver.values, resolver.names, trial.built, *shared, entries)
    found, warnings = check(view, CHECKS_OF[cls])
    required = [*_missing_plugins(resolver), *_unused_dataset(dataset, components)]
    raise_all([*resolver.faults, *trial.faults, *required, *found], what)
    assert recipe is not None
    recipe._text, recipe._root = text, root
    recipe._warnings, recipe._data_error = tuple(warnings), trial.data_error
    recipe._components, recipe._objects = components, trial.reusable()
    return recipe


def _unused_dataset(dataset: MapDataset | None, components: Iterable[Resolved]) -> Iterator[DiffkitError]:
    """Return an error if a data set is given that the data of the recipe does not take."""
    data = next((one for one in components if one.path == "data"), None)
    if dataset is None or data is None:
        return
    if all(parameter.target != DATASET for parameter in data.parameters):
        message = f"data {data.spec.name} does not take the data set that is given"
        fix = "name: dataset, and its options x and conditions"
        yield RecipeError(message, code="DK115", where=data.entries["name"].mark, fix=fix)


def _missing_plugins(resolver: Resolver) -> Iterator[DiffkitError]:
    """Return an error for each required plugin that is not installed, and for each requirement that cannot be
    parsed.
    """
    required: dict[str, str] = resolver.values.get("requires", {})
    for name, wanted in required.items():
        node = resolver.root.at("requires")
        entry = node.child(name) if node else None
        mark = entry.mark if entry else resolver.root.mark
        try:
            wanted_range = SpecifierSet(wanted)
        except InvalidSpecifier:
            message = f"{quote(wanted)} is not a range of versions"
            yield RecipeError(message, code="DK108", where=mark, fix='write a range such as ">=0.1,<1"')
            continue
        plugin = next((plugin for plugin in registry().plugins if plugin.answers_to(name)), None)
        if plugin is None:
            near = nearest(name, [n for p in registry().plugins for n in (p.distribution, p.name) if n])
            message, hint = f"this recipe requires {name} {wanted}, which is not installed", did_you_mean(near)
            yield PluginError(message, code="DK108", where=mark, hint=hint, fix=f'pip install "{name}{wanted}"')
        elif plugin.status != "ok":
            message = f"this recipe requires {name}, which is {plugin.status} ({plugin.reason})"
            yield PluginError(message, code="DK108", where=mark, fix=f"diffkit plugins --why {plugin.name}")
        elif not _satisfies(plugin, wanted_range):
            message = f"this recipe requires {name} {wanted}, but {plugin.version} is installed"
            yield PluginError(message, code="DK108", where=mark, fix=f'pip install "{name}{wanted}"')


def _satisfies(plugin: Plugin, wanted: SpecifierSet) -> bool:
    """Return whether the version of a plugin lies in a range; a plugin in a file has no version and satisfies every
    range.
    """
    try:
        return plugin.version is None or wanted.contains(plugin.version, prereleases=True)
    except InvalidVersion:
        return False
