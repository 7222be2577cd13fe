import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unroll.data import HashedVocabulary, Vocabulary, build_vocabulary, encode, load_text, tokenize
from unroll.errors import InputError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's GOOD, not bad!", ["it's", "good", "not", "bad"]),
        ("one<br />two<br/>three<BR>four", ["one", "two", "three", "four"]),
        ("10/10 café 'quoted' well_known", ["10", "10", "café", "quoted", "well", "known"]),
        ("...", []),
    ],
)
def test_tokenize(text, words):
    assert tokenize(text) == words


def test_vocabulary_ranks_by_count_then_alphabet():
    texts = ["b a c", "c a", "d"]
    assert build_vocabulary(texts, 10).words == ("a", "c", "b", "d")
    assert build_vocabulary(texts, 5).words == ("a", "c", "b")
    assert build_vocabulary(texts[::-1], 10) == build_vocabulary(texts, 10)


def test_encode_pads_cuts_and_marks_unknown_words():
    vocabulary = Vocabulary(("a", "b"))
    rows = encode(["a b z a", "b", "!"], 3, vocabulary)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[2, 3, 1], [3, 0, 0], [1, 0, 0]]
    assert vocabulary.size == 4


@given(st.lists(st.text(), max_size=5), st.integers(1, 8), st.integers(3, 50))
def test_encoded_rows_are_well_formed(texts, length, size):
    for vocabulary in (build_vocabulary(texts, size), HashedVocabulary(size)):
        rows = encode(texts, length, vocabulary)
        assert rows.shape == (len(texts), length)
        assert vocabulary.size <= size and (rows < vocabulary.size).all()
        for row in rows:
            filled = np.count_nonzero(row)
            assert filled >= 1 and (row[filled:] == 0).all()


def test_hashing_is_the_same_in_every_session():
    vocabulary = HashedVocabulary(1000)
    assert [vocabulary.token_id(word) for word in ("good", "bad")] == [712, 467]


@pytest.mark.parametrize("size", [2, 0, 2.5, None])
def test_vocabulary_size_must_leave_room_for_a_word(size, one_line):
    with pytest.raises(InputError, match=one_line("vocabulary size")):
        build_vocabulary(["a"], size)
    with pytest.raises(InputError, match=one_line("vocabulary size")):
        HashedVocabulary(size)


def test_length_must_be_positive(one_line):
    with pytest.raises(InputError, match=one_line("length")):
        encode(["a"], 0, HashedVocabulary(5))


def test_load_text(tiny_build):
    train, test = load_text("tiny_pictures", tiny_build, length=4, vocabulary_size=100)
    assert train.name == "tiny_pictures[10/4]" and train.inputs.shape == (10, 4)
    assert train.class_names == ("even", "odd") and train.inputs.dtype == np.int32
    # "common" is in every text, so it has the first word id; its neighbour is a word of one text.
    assert (train.inputs[:, 1] == 2).all() and (test.inputs[:, 1] == 2).all()
    assert len(set(train.inputs[:, 0].tolist())) == 10
    assert 1 not in train.inputs


def test_excluded_texts_leave_no_word_in_the_vocabulary(tiny_build):
    options = {"data_dir": tiny_build, "length": 2, "vocabulary_size": 100}
    train, _ = load_text("tiny_pictures", exclude_ids=[3, 8], **options)
    unknown = np.flatnonzero((train.inputs == 1).any(axis=1))
    assert unknown.tolist() == [3, 8]


def test_hashing_does_not_depend_on_the_training_texts(tiny_build):
    options = {"data_dir": tiny_build, "length": 2, "encoding": "hashing"}
    whole, test = load_text("tiny_pictures", **options)
    half, same_test = load_text("tiny_pictures", num_train=5, exclude_ids=[0], **options)
    np.testing.assert_array_equal(half.inputs, whole.inputs[:5])
    np.testing.assert_array_equal(same_test.inputs, test.inputs)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"encoding": "bytes"}, "'vocabulary' or 'hashing'"),
        ({"exclude_ids": [10]}, "exclude_ids: id 10"),
        ({"vocabulary_size": 1}, "vocabulary size"),
        ({"num_train": 11}, "11 rows of train"),
    ],
)
def test_load_text_rejects(options, text, tiny_build, one_line):
    with pytest.raises(InputError, match=one_line(text)):
        load_text("tiny_pictures", tiny_build, **options)
