"""Tiny tasks of lm-evaluation-harness, of each kind that can be scored document by document."""

from rows import write_jsonl

from evomerge.tasks import make

ROWS = [
    {"q": f"{i} {chr(97 + i % 26)}", "choices": ["x", "yz", f"{i}w"][: 2 + i % 2], "answer": i % 2, "text": "ab"[i % 2]}
    for i in range(24)
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}=",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "f1"}],
}
TARGET = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{q}}=",
    "doc_to_target": "text",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}
GENERATION = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}=",
    "doc_to_target": "text",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
    "metric_list": [{"metric": "exact_match"}],
    "filter_list": [
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
}


def config(folder, kind=CHOICE, rows=ROWS, **more):
    write_jsonl(folder / "test.jsonl", rows)
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "test.jsonl"}}, "test_split": "test"}
    return {**files, **kind, **more}


def harness(folder, kind=CHOICE, search=8, report=10, rows=ROWS, changes=None, **settings):
    whole = config(folder, kind, rows, **(changes or {}))
    return make("mine", {"kind": "lm_eval", "config": whole, "search": search, "report": report, **settings}, folder)
