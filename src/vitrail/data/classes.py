"""Map the labels of a data set to class indices: one rule for all sources."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitrail.config.data import DataConfig
from vitrail.data.image_errors import head
from vitrail.errors import ConfigError, DataError, plural

# A label as a source hands it over: a cleaned name or a whole number.
Label = str | int

_AROUND = r"[\s\ufeff\u200b\u200e\u200f\u2060]+"
_BLANKS_AROUND = re.compile(rf"^{_AROUND}|{_AROUND}$")
# Blanks, underscores and dashes between two words of a name.
_BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_\-\u2010-\u2015]+(?=\w)")
_DECIMAL = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
# Texts that programs write where a value is missing.
MISSING = frozenset(("nan", "none", "null", "na", "n/a", "<na>", "nat"))
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u00b4`", "''\"\"''")
_NAMED_BY = "; data.classes.names and data.classes.values say which label is which class"
_TRUTH = {"false": "0", "true": "1", "0": "false", "1": "true"}


@dataclass(frozen=True)
class ClassRules:
    """Settings that decide the class of a label.

    Attributes:
        names: Names of the classes, in order (``data.classes.names``).
        values: The label of each of these names (``data.classes.values``).
        merge: Merge names that :func:`similar_key` maps to the same text.
        known: The classes of a run, in order; no other class is accepted.
    """

    names: tuple[str, ...] | None = None
    values: tuple[Label, ...] | None = None
    merge: bool = False
    known: tuple[str, ...] | None = None

    @classmethod
    def of(cls, config: DataConfig, known: Sequence[str] | None) -> ClassRules:
        """Read the rules of a config, and the classes of a run if given."""
        merge = config.classes.merge == "similar"
        given = config.classes.values
        values = None if given is None else tuple(v if isinstance(v, (int, str)) else str(v) for v in given)
        return cls(config.classes.names, values, merge, None if known is None else tuple(known))


@dataclass(frozen=True)
class Numbering:
    """Mapping of labels to class indices; a run records it in its recipe under ``data.classes``.

    Attributes:
        names: Names of the classes, in order.
        values: The label of each.
        unlabelled_value: The number of unlabelled pixels of a scene, "none" where every pixel is labelled; None where
            the data is not a scene.
    """

    names: tuple[str, ...] | None = None
    values: tuple[Label, ...] | None = None
    unlabelled_value: int | str | None = None


@dataclass(frozen=True)
class Classes:
    """Classes of a data set.

    Attributes:
        names: Their names, in order.
        index: Label -> class index.
        numbering: Mapping from labels to names, where it cannot be derived from the names themselves.
    """

    names: tuple[str, ...]
    index: Mapping[Label, int]
    numbering: Numbering | None = None

    def named(self, labels: Iterable[Label | tuple[Label, ...]]) -> list[str | tuple[str, ...]]:
        """Map each label, or each tuple of labels, to its class."""
        name = {label: self.names[i] for label, i in self.index.items()}
        return [
            tuple(dict.fromkeys(name[one] for one in label)) if isinstance(label, tuple) else name[label]
            for label in labels
        ]


def clean_name(text: str) -> str:
    """Normalise a name to NFC and strip the blanks around it (no-break spaces and byte order marks included)."""
    if text.isascii():
        return text.strip()
    return _BLANKS_AROUND.sub("", unicodedata.normalize("NFC", text))


def normalize_label(value: object, where: object) -> Label:
    """Normalise one label: texts are cleaned; booleans, integers and whole floats become Python integers.

    Raises:
        DataError: Neither a text nor a whole number.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: the label {value!r} is not UTF-8 text; store it as text") from error
    if isinstance(value, str):
        return clean_name(value)
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    raise DataError(f"{where}: the label {value} is neither a text nor a whole number; labels must be whole numbers")


def similar_key(name: str) -> str:
    """Compute a key that is equal for names that look alike.

    They differ only in letter case, width, quotation marks, invisible characters, or the blanks, "_" and "-" between
    words.
    """
    number = parse_number(name)
    if number is not None:
        return str(number)
    text = clean_name(unicodedata.normalize("NFKC", name)).casefold()
    if not text.isascii():
        text = "".join(c for c in text.translate(_QUOTES) if unicodedata.category(c) != "Cf")
    return _BETWEEN_WORDS.sub(" ", text)


def reject_missing_labels(labels: Iterable[Label], where: object) -> None:
    """Raise an error for "nan", "None" and similar texts among numeric labels: they mark missing values.

    Raises:
        DataError: There are such labels.
    """
    texts = {label for label in labels if isinstance(label, str) and parse_number(label) is None}
    if texts and all(text.casefold() in MISSING for text in texts) and len(texts) < len(set(labels)):
        raise DataError(
            f"{where}: the labels are numbers, and {', '.join(map(repr, sorted(texts)))} where there is none; fill or "
            "remove these rows, or name that class by another word"
        )


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group class names that differ only in spelling; see :func:`similar_key`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(similar_key(name), []).append(name)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def describe_similar(names: Iterable[str]) -> str | None:
    """Describe classes that differ only in spelling, with the remedy; None if there are none."""
    groups = similar_names(names)
    if not groups:
        return None
    listed = "; ".join(" and ".join(map(repr, group)) for group in groups)
    return (
        f"class names that differ only in letter case, blanks, '_' or '-': {listed}; rename them, or merge them with "
        "data.classes.merge similar"
    )


def resolve_classes(
    found: Mapping[Label, int],
    rules: ClassRules,
    where: Path,
    own: Mapping[int, str] | None = None,
    numbers: Sequence[int] | None = None,
) -> Classes:
    """Resolve the classes of a data set, and the class of each label.

    Names are in alphabetical order and numbers in numeric order, unless ``data.classes.names``, the data or a run give
    the order. Texts count as numbers where all of them are (``"1"`` and ``"1.0"`` are the same class).

    Args:
        found: Label, as :func:`normalize_label` gives it, -> how many images have it.
        rules: The recipe's settings, and the classes of a run.
        where: Source of the labels, for errors.
        own: Names that the data itself gives to its numbers.
        numbers: The number that the first, second, ... name of ``data.classes.names`` belongs to, where the form of the
            data says so.

    Raises:
        DataError: Labels without a name, classes unknown to a run, numbers that could be read in two ways, or
            fewer than two classes.
        ConfigError: A name that is given twice.
    """
    reject_missing_labels(list(found), where)
    values = None if own is not None else _numbers(found)
    if own is not None:
        names = _own_names(found, own, where)
    elif values is not None:
        names = _names_of_numbers(values)
    else:
        names = {label: str(label) for label in found}
    numbering: Numbering | None = None
    if rules.names is not None:
        given = tuple(clean_name(name) for name in rules.names)
        if len(set(given)) < len(given):
            twice = head([repr(name) for name, count in Counter(given).items() if count > 1])
            raise ConfigError(f"data.classes.names has {twice} twice (after stripping spaces); name each class once")
        if values is not None:
            order = _values_of(given, rules.values, numbers, values, where)
            names = _name_numbers(values, dict(zip(order, given, strict=True)), where)
            numbering = Numbering(given, tuple(str(v) if isinstance(v, float) else v for v in order))
        else:
            names, numbering = _rename(names, given, rules, own, where)
        classes = given
    elif own is not None and len(set(names.values())) != 1:
        classes = tuple(dict.fromkeys(clean_name(name) for name in own.values()))
        numbering = Numbering(classes, tuple(own)) if len(classes) == len(own) else None
    else:
        if rules.merge and rules.known is None:
            names = _merge(names, found)
        classes = _in_order(set(names.values()))
    if rules.known is not None:
        return Classes(rules.known, _match(names, rules, where), numbering)
    if len(classes) < 2:
        raise DataError(f"{where} has one class only ({', '.join(classes)}), two are needed")
    index = {name: i for i, name in enumerate(classes)}
    return Classes(classes, {label: index[name] for label, name in names.items()}, numbering)


def match_names_to_numbers(present: Sequence[int], names: Sequence[str], where: object) -> tuple[int, ...]:
    """Match names to numeric labels, which count from 0, or from 1 where the labels allow nothing else.

    Args:
        present: The numbers that are there.
        names: The names, in order.
        where: Source of the numbers, for errors.

    Raises:
        DataError: A number without a name, or both readings are possible.
    """
    low, high, count = min(present), max(present), len(names)
    if low == 0 and high < count:
        return tuple(range(count))
    if low >= 1 and high == count:
        return tuple(range(1, count + 1))
    if low < 0 or high >= count:
        first = 1 if low >= 1 else 0
        strangers = [str(v) for v in sorted(present) if not first <= v < first + count]
        raise DataError(
            f"{where}: the labels {head(strangers)} have no name, there are {count}: {head(names)}; correct them or "
            "data.classes.names, or give the label of each name with data.classes.values"
        )
    raise DataError(
        f"{where}: the labels are {low} to {high} and {plural(count, 'class has a name', 'classes have names')} "
        f"({head(names)}): does the first name belong to label 0 or to label 1? Give data.classes.values "
        f"[{_few_numbers(range(count))}] or [{_few_numbers(range(1, count + 1))}]"
    )


def encode_targets(
    labels: Sequence[Label | tuple[Label, ...]], index: Mapping[Label, int], count: int
) -> npt.NDArray[np.int64]:
    """Convert labels to class indices.

    Args:
        labels: A label an image, or a tuple of any number of labels an image.
        index: Label -> class index.
        count: Number of classes, K.

    Returns:
        Class indices, shape ``(N,)``; of tuples 1 for each label that an image has and 0 for others, shape ``(N, K)``.
    """
    if not any(isinstance(label, tuple) for label in labels):
        return np.array([index[label] for label in labels if not isinstance(label, tuple)], dtype=np.int64)
    targets = np.zeros((len(labels), count), dtype=np.int64)
    for row, own in enumerate(labels):
        targets[row, [index[label] for label in (own if isinstance(own, tuple) else (own,))]] = 1
    return targets


def count_labels(labels: Iterable[Label | tuple[Label, ...]]) -> Counter[Label]:
    """Count the images of each label."""
    return Counter(one for label in labels for one in (label if isinstance(label, tuple) else (label,)))


def parse_number(text: str) -> int | float | None:
    """Parse a text as a number, an integer if it is whole ("1.0"); None if it is not a number."""
    if not _DECIMAL.fullmatch(text):
        return None
    whole, _, fraction = text.partition(".")
    return float(text) if fraction.strip("0") else int(whole)


def _numbers(found: Iterable[Label]) -> dict[Label, int | float] | None:
    """Parse the labels as numbers; None if one is not a number."""
    values: dict[Label, int | float] = {}
    for label in found:
        value = label if isinstance(label, int) else parse_number(label)
        if value is None:
            return None
        values[label] = value
    return values


def _names_of_numbers(values: Mapping[Label, int | float]) -> dict[Label, str]:
    """Name numbers; digits keep their spelling ("007") where a number has only one."""
    spelled: dict[int | float, set[str]] = {}
    for label, value in values.items():
        spelled.setdefault(value, set()).add(str(label))
    return {
        label: str(label) if len(spelled[value]) == 1 and str(label).isdigit() else str(value)
        for label, value in values.items()
    }


def _own_names(found: Iterable[Label], own: Mapping[int, str], where: Path) -> dict[Label, str]:
    strangers = sorted((label for label in found if label not in own), key=str)
    if strangers:
        raise DataError(
            f"{where}: the labels {head([str(v) for v in strangers])} have no name, there are {len(own)}: "
            f"{head(list(own.values()))}; correct them, or give data.classes.names"
        )
    return {label: clean_name(own[label]) for label in found if isinstance(label, int)}


def _values_of(
    given: tuple[str, ...],
    values: Sequence[Label] | None,
    numbers: Sequence[int] | None,
    found: Mapping[Label, int | float],
    where: Path,
) -> tuple[Label | float, ...]:
    """Return the number of each given name."""
    if values is not None:
        own = _numbers(values)
        if own is not None:
            return tuple(own[value] for value in values)
        truth = [_TRUTH.get(str(value).casefold(), "") for value in values]
        return tuple(int(v) for v in truth) if sorted(truth) == ["0", "1"] else tuple(values)
    if numbers is None and (themselves := _numbers(given)) is not None and set(found.values()) & {*themselves.values()}:
        # Names that are numbers: each is its own label.
        if set(found.values()) <= {*themselves.values()}:
            return tuple(themselves[name] for name in given)
        raise DataError(
            f"{where}: the labels are {_some_numbers(found)} and data.classes.names are numbers too, {head(given, 6)}: "
            "which label does each belong to? Give data.classes.values"
        )
    if numbers is not None:
        return tuple(numbers[: len(given)]) if len(numbers) >= len(given) else tuple(range(len(given)))
    whole = [value for value in found.values() if isinstance(value, int)]
    if len(whole) < len(found):
        raise DataError(
            f"{where}: labels such as {next(v for v in found.values() if not isinstance(v, int))} are not whole "
            "numbers, so data.classes.names cannot name them in order; give the label of each name with "
            "data.classes.values"
        )
    return match_names_to_numbers(whole, given, where) if whole else tuple(range(len(given)))


def _some_numbers(found: Mapping[Label, int | float]) -> str:
    return head([str(value) for value in sorted(set(found.values()))], 6)


def _name_numbers(
    values: Mapping[Label, int | float], names: Mapping[Label | float, str], where: Path
) -> dict[Label, str]:
    strangers = sorted({value for value in values.values() if value not in names})
    if strangers:
        raise DataError(
            f"{where}: the labels {head([str(v) for v in strangers])} have no name; data.classes.names names "
            f"{head([f'{value} {name}' for value, name in names.items()])}; correct them, or name all of them "
            "(data.classes.names, data.classes.values)"
        )
    return {label: names[value] for label, value in values.items()}


def _rename(
    names: dict[Label, str], given: tuple[str, ...], rules: ClassRules, own: Mapping[int, str] | None, where: Path
) -> tuple[dict[Label, str], Numbering | None]:
    """Apply the given names to labels that are texts, or that the data set names itself."""
    spelled = {} if own is None else {value: clean_name(name) for value, name in own.items()}
    renamed = {clean_name(v): n for v, n in zip(rules.values or (), given, strict=False) if isinstance(v, str)}
    if own is not None and not renamed and not set(spelled.values()) & set(given):
        near = {similar_key(name): name for name in given}
        alike = {name: near[similar_key(name)] for name in spelled.values() if similar_key(name) in near}
        if alike and set(alike.values()) == set(given):
            renamed = alike  # other spellings of the same names
    if own is not None and not renamed and not set(spelled.values()) & set(given):
        if len(own) != len(given):
            raise DataError(
                f"{where} names {plural(len(own), 'class')} itself ({head(list(own.values()))}) and data.classes.names "
                f"has {plural(len(given), 'name')} ({head(given)}); give one name for each, or leave "
                "data.classes.names out"
            )
        renamed = dict(zip(spelled.values(), given, strict=True))
    strangers = sorted({name for name in names.values() if name not in renamed and name not in given})
    if strangers:
        known = {similar_key(name): name for name in given}
        if rules.merge and all(similar_key(name) in known for name in strangers):
            renamed |= {name: known[similar_key(name)] for name in strangers}
        else:
            values = (
                f"; where {head(given)} are their names, give the label of each with data.classes.values, such as "
                f"{strangers}"
            )
            whole = len(strangers) == len(given) and not set(names.values()) & set(given)
            raise DataError(
                f"{where} has the classes {_with_similar(strangers, given, 'data.classes.names')} that "
                "data.classes.names "
                f"does not name: {', '.join(given)}; rename them{'' if rules.merge else _merging(strangers, given)}, "
                f"or add them to data.classes.names{values if whole and rules.values is None else ''}"
            )
    numbering = Numbering(given, tuple(renamed)) if renamed and len(renamed) == len(given) else None
    if own is not None and not renamed and set(spelled.values()) == set(given):
        by_name = {name: value for value, name in spelled.items()}
        numbering = Numbering(given, tuple(by_name[name] for name in given))
    return {label: renamed.get(name, name) for label, name in names.items()}, numbering


def _merge(names: dict[Label, str], found: Mapping[Label, int]) -> dict[Label, str]:
    """Merge names that differ only in spelling into the most frequent one."""
    counts: Counter[str] = Counter()
    for label, name in names.items():
        counts[name] += found[label]
    chosen: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        chosen.setdefault(similar_key(name), name)
    return {label: chosen[similar_key(name)] for label, name in names.items()}


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names: numerically where all are numbers, else alphabetically."""
    values = {name: parse_number(name) for name in names}
    if all(value is not None for value in values.values()):
        return tuple(sorted(values, key=lambda name: (values[name] or 0, name)))
    return tuple(sorted(values))


def _match(names: Mapping[Label, str], rules: ClassRules, where: Path) -> dict[Label, int]:
    """Look up the class index of each label among the classes of a run."""
    known = rules.known or ()
    exact, numeric, similar = (_unique(known, key) for key in (clean_name, parse_number, similar_key))
    index: dict[Label, int] = {}
    unknown: set[str] = set()
    for label, name in names.items():
        value = parse_number(name)
        position = exact.get(name)
        if position is None and value is not None:
            position = numeric.get(value)
        if position is None and (isinstance(label, int) or name.casefold() in _TRUTH):
            # True and False, as text or as 1 and 0.
            position = next((i for i, k in enumerate(known) if k.casefold() == _TRUTH.get(name.casefold())), None)
        if position is None and rules.merge:
            position = similar.get(similar_key(name))
        if position is None:
            unknown.add(name)
        else:
            index[label] = position
    if unknown:
        raise DataError(
            f"{where} has the classes {_with_similar(sorted(unknown), known, 'the run')} that are unknown to the run: "
            f"{', '.join(known)}; rename them{'' if rules.merge else _merging(sorted(unknown), known)} or remove them"
            + (_NAMED_BY if rules.names is None and (not index or None not in map(parse_number, unknown)) else "")
        )
    return index


def _unique(known: Sequence[str], key: object) -> dict[object, int]:
    """Index the classes by a key; keys shared by several classes are left out."""
    assert callable(key)
    keys = [key(name) for name in known]
    counts = Counter(keys)
    return {value: i for i, value in enumerate(keys) if value is not None and counts[value] == 1}


def _with_similar(names: Sequence[str], known: Sequence[str], whose: str) -> str:
    near = {similar_key(name): name for name in known}
    return ", ".join(
        f"{name} ({whose} has {near[similar_key(name)]})" if similar_key(name) in near else name for name in names
    )


def _merging(names: Sequence[str], known: Sequence[str]) -> str:
    """Return the remedy for names that are other spellings of known names."""
    near = {similar_key(name) for name in known}
    return ", merge them with data.classes.merge similar" if all(similar_key(name) in near for name in names) else ""


def _few_numbers(numbers: range) -> str:
    shown = ",".join(map(str, numbers[:6]))
    return shown if len(numbers) <= 6 else f"{shown},...,{numbers[-1]}"
