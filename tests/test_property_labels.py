"""Labels of every kind: integers are class numbers, text is a name, and anything else is refused by name."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskgil_jax.conditioning import ClassConditioner
from maskgil_jax.config import ConfigError

NAMES = st.lists(
    st.one_of(st.integers(-3, 120).map(str), st.sampled_from(["cat", "None", "True", "1.0", "²", "--5", " ", "nan", "b'a'"])),
    min_size=1,
    max_size=12,
    unique=True,
).map(lambda names: tuple(sorted(names)))
INTEGERS = [int, np.int8, np.int32, np.int64, np.uint8, np.uint64]
WRAPPERS = [
    lambda values: values,
    tuple,
    np.array,
    jnp.array,
    lambda values: [jnp.array(value) for value in values],
    lambda values: np.array(values, object),
    lambda values: iter(values),
]


@given(names=NAMES, data=st.data(), kind=st.sampled_from(INTEGERS), wrap=st.sampled_from(range(len(WRAPPERS))))
@example(names=tuple(sorted(map(str, range(1, 99)))), data=None, kind=int, wrap=3)
@example(names=tuple(sorted(map(str, range(1, 99)))), data=None, kind=np.int64, wrap=4)
def test_integer_of_any_type_is_the_class_number(names, data, kind, wrap):
    numbers = list(range(len(names))) if data is None else data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1))
    conditioner = ClassConditioner(names)
    found = conditioner.label_ids(WRAPPERS[wrap]([kind(number) for number in numbers]))
    assert found.dtype == np.int32 and found.tolist() == numbers
    assert conditioner.label_ids(found).tolist() == numbers
    assert np.asarray(conditioner.encode(conditioner.encode(found)).label_b).tolist() == numbers
    assert conditioner.label_ids(kind(numbers[0])).tolist() == numbers[:1]
    assert conditioner.label_ids(np.array(numbers[0])).tolist() == numbers[:1]


@given(names=NAMES, data=st.data(), as_array=st.booleans())
def test_text_is_the_class_of_that_name(names, data, as_array):
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6))
    found = ClassConditioner(names).label_ids(np.array(chosen) if as_array else chosen)
    assert [names[number] for number in found] == chosen
    assert ClassConditioner(names).label_ids(chosen[0]).tolist() == found[:1].tolist()


@given(names=NAMES, number=st.one_of(st.integers(-200, 200), st.integers()), as_text=st.booleans())
@example(names=("5", "7"), number=1, as_text=True)
@example(names=("a",), number=2**70, as_text=False)
def test_number_is_in_range_or_refused_and_a_name_goes_before_a_number_in_text(names, number, as_text):
    conditioner, label = ClassConditioner(names), str(number) if as_text else number
    if as_text and label in names:
        assert conditioner.label_ids(label).tolist() == [names.index(label)]
    elif 0 <= number < len(names):
        assert conditioner.label_ids(label).tolist() == [number]
    else:
        refuse(conditioner, label)


@given(
    names=NAMES,
    label=st.one_of(
        st.booleans(),
        st.floats(),
        st.none(),
        st.binary(max_size=3),
        st.lists(st.integers(0, 3), max_size=2),
        st.just({}),
        st.builds(object),
        st.floats().map(np.float32),
        st.booleans().map(np.bool_),
        st.just(np.zeros((2, 2), int)),
        st.complex_numbers(),
    ),
    inside=st.booleans(),
)
@example(names=("None", "a"), label=None, inside=True)
@example(names=("True", "a"), label=True, inside=False)
@example(names=("1.0", "a"), label=1.0, inside=False)
@example(names=("a", "b"), label=np.array([0.0, 1.0]), inside=False)
@example(names=("a", "b"), label=np.array([True, False]), inside=False)
def test_other_kinds_are_refused_even_where_a_class_is_spelled_like_them(names, label, inside):
    if inside or not isinstance(label, list):
        refuse(ClassConditioner(names), [label] if inside else label)


@given(names=NAMES, label=st.text(max_size=20))
@example(names=("a",), label="²")
@example(names=("a",), label="--5")
@example(names=("a",), label="٣")
@example(names=("a",), label="")
@example(names=("a",), label="9" * 5000)
@example(names=("a",), label="x" * 100_000)
def test_any_text_is_a_class_or_refused_in_one_line(names, label):
    try:
        (number,) = ClassConditioner(names).label_ids(label)
    except ConfigError as error:
        check_line(error)
        return
    spelled = names[number] in (label, label.strip())
    assert spelled or int(label) == number


def refuse(conditioner, labels):
    with pytest.raises(ConfigError) as refusal:
        conditioner.label_ids(labels)
    check_line(refusal.value)


def check_line(error):
    line = str(error)
    assert line.startswith("labels: ") and "\n" not in line and line.isprintable() and len(line) < 400, line
