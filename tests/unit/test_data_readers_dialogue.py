import json

import pytest
from reading import fields, items_of, rules

from distllm.errors import DataError

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "T",
            "paragraphs": [
                {
                    "context": "Paris is in France.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where?",
                            "answers": [{"text": "France", "answer_start": 12}],
                        },
                        {"id": "q2", "question": "When?", "is_impossible": True, "answers": []},
                        {"id": "q3", "question": "Who?", "answers": [{"text": "France", "answer_start": 0}]},
                    ],
                }
            ],
        }
    ],
}


def test_squad_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SQUAD))
    items = items_of("qa", tmp_path)
    assert [item.id for item in items] == ["q1", "q2", "q3"]
    assert items[0].fields == {
        "context": "Paris is in France.",
        "question": "Where?",
        "answers": '[{"text": "France", "start": 12}]',
    }
    assert items[1].fields["answers"] == "[]"
    assert rules(items) == ["wrong_answer"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"text": ["France"], "answer_start": [12]}, [{"text": "France", "start": 12}]),
        ("France", [{"text": "France", "start": None}]),
        (["France", "Gaul"], [{"text": "France", "start": None}, {"text": "Gaul", "start": None}]),
        (None, []),
    ],
)
def test_flat_questions(tmp_path, answers, expected):
    record = {"context": "Paris is in France.", "question": "Where?", "answers": answers, "key": "k"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + '\n{"question": "?"}\n')
    items = items_of("qa", tmp_path, id_key="key")
    assert items[0].id == "k"
    assert json.loads(items[0].fields["answers"]) == expected
    assert rules(items) == ["no_question"]


def test_a_question_without_a_word_on_answers_is_not_one_without_an_answer(tmp_path):
    asked = {"context": "Paris is in France.", "question": "Where?"}
    records = [{**asked, "answer": "France"}, {**asked, "reply": "France"}, {**asked, "is_impossible": True}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    items = items_of("qa", tmp_path)
    assert rules(items) == ["no_answers"]
    assert items[1].reason == "no answers or answer; it has 'context', 'question', 'reply'"
    found = [json.loads(items[place].fields["answers"]) for place in (0, 2)]
    assert found == [[{"text": "France", "start": None}], []]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ],
)
def test_conversations_of_both_forms(tmp_path, record):
    (tmp_path / "a.json").write_text(json.dumps([record, {"messages": [{"role": 1}]}, {"x": 1}, 3]))
    items = items_of("chat", tmp_path)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert json.loads(items[0].fields["messages"]) == messages
    assert rules(items) == ["wrong_message", "no_messages", "not_an_object"]
    (tmp_path / "a.json").write_text('[{"messages": ')
    with pytest.raises(DataError, match="not JSON"):
        items_of("chat", tmp_path)


def test_preferences(tmp_path):
    lines = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": " "},
        {"prompt": "p", "chosen": [{"role": "assistant", "content": "good"}], "rejected": "bad"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = items_of("preferences", tmp_path)
    assert fields(items[:1]) == [lines[0]]
    assert rules(items) == ["incomplete", "incomplete"]
    assert items[1].reason == "no text in chosen, rejected; it has 'prompt', 'chosen'"
    assert items[2].reason.endswith("and lists of messages are no text: chosen")
