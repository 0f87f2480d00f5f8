"""Docstrings of Python packages as data for recipes: summaries, questions on parameters, preferences.

usage: docstrings.py OUT DIRECTORY...

Reads every Python file below the directories; nothing is imported. Writes into OUT

- summaries.jsonl: ``body``, the signature and what follows a docstring's first paragraph, ``lead``, how
  it begins, and ``summary``, that paragraph, where it is one sentence of three to thirty words;
- questions.jsonl, in SQuAD's form: type and default of the parameters that a lead describes as numpydoc
  has it; of every eighth docstring those of a parameter it has not, which has no answer;
- preferences.jsonl: ``prompt``, a lead, its summary in the imperative that PEP 257 asks for as ``chosen``
  ("Return the sum."), and in the third person as ``rejected`` ("Returns the sum.").

A body and a summary occur once each, so no text of a validation split is met in training. The same files
give the same bytes.
"""

import ast
import inspect
import json
import re
import sys
import warnings
from pathlib import Path

LONGEST_BODY, LONGEST_LEAD, SHORTEST_BODY = 1200, 480, 80
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
VERBS = ("Return", "Compute", "Calculate", "Get", "Set", "Create", "Convert", "Check", "Add", "Generate")
SECTION = re.compile(r"^(Examples?|References?|See Also|Notes?)\n[-=]{3,}", re.MULTILINE)
PARAMETER = re.compile(r"^(\w+) : (.+)$", re.MULTILINE)
KIND = re.compile(r",? of shape|, shape|, (?:optional|default|keyword)| \(|;")
DEFAULT = re.compile(r"\(?default(?:s to|:|=| is)?\s*([^\s,;)]+)\)?\.?$", re.IGNORECASE)


def functions(path):
    """Yield ``(name, signature, docstring)`` of every documented function of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and (text := ast.get_docstring(node, clean=False)):
            arguments = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
            names = ", ".join(name for name in arguments if name not in ("self", "cls"))
            yield node.name, f"def {node.name}({names})", inspect.cleandoc(text)


def parted(signature, text):
    """Return ``(summary, body)`` of a docstring, or None if it has no such parts."""
    first, _, rest = text.partition("\n\n")
    summary = " ".join(first.split())
    if ends := SECTION.search(rest):
        rest = rest[: ends.start()]
    body = cut(f"{signature}\n{rest.strip()}\n", LONGEST_BODY)
    words = summary.split()
    plain = summary.endswith(".") and 3 <= len(words) <= 30 and ". " not in summary and ">>>" not in text[:80]
    return (summary, body) if plain and len(body) >= SHORTEST_BODY else None


def cut(text, longest):
    """Return the whole lines of the beginning of a text."""
    return text[:longest].rpartition("\n")[0].strip()


def styles(summary):
    """Return a summary in the imperative and in the third person, or None if it has neither."""
    first, _, rest = summary.partition(" ")
    verb = first.removesuffix("s")
    return (f"{verb} {rest}", f"{verb}s {rest}") if verb in VERBS else None


def answers(context):
    """Yield ``(parameter, kind, answer, place)`` for what a context says of its parameters."""
    for found in PARAMETER.finditer(context):
        name, said = found.groups()
        kind = KIND.split(said)[0].strip().rstrip(".")
        if 0 < len(kind.split()) <= 6:
            yield name, "type", kind, found.start(2) + said.index(kind)
        if default := DEFAULT.search(said):
            yield name, "default", default.group(1), found.start(2) + default.start(1)


def main(out, *directories):
    """Write the three files, and say how many records each has."""
    files = sorted({path for directory in directories for path in Path(directory).rglob("*.py")})
    summaries, questions, preferences, seen = [], [], [], set()
    foreign = "copy"
    for path in files:
        if {"tests", "test"} & set(path.parts):
            continue
        for name, signature, text in functions(path):
            pair = parted(signature, text)
            if pair is None or seen & set(pair):
                continue
            seen |= set(pair)
            summary, body = pair
            key = f"{path.parent.name}.{path.stem}.{name}.{len(summaries)}"
            lead = cut(f"{body}\n", LONGEST_LEAD)
            summaries.append({"id": key, "body": body, "lead": lead, "summary": summary})
            if both := styles(summary):
                preferences.append({"id": key, "prompt": lead, "chosen": both[0], "rejected": both[1]})
            found = list(answers(lead))
            names = {parameter for parameter, *_ in found}
            for number, (parameter, kind, answer, place) in enumerate(found):
                asked, right = parameter, [{"text": answer, "answer_start": place}]
                if len(summaries) % 8 == 0 and foreign not in names:
                    asked, right = foreign, []
                assert lead[place : place + len(answer)] == answer
                question = f"What is the {kind} of {asked}?"
                record = {"id": f"{key}.{number}", "context": lead, "question": question, "answers": right}
                questions.append(record)
            foreign = found[0][0] if found else foreign
    Path(out).mkdir(parents=True, exist_ok=True)
    for kind, records in (("summaries", summaries), ("questions", questions), ("preferences", preferences)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (Path(out) / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{len(records)} {kind}")


if __name__ == "__main__":
    main(*sys.argv[1:])
