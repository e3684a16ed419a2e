"""0.9 · F1 + 0.1 · format: words of the answer against the best of the right ones, as SQuAD counts them; whether it is tagged."""

import re
import string
from collections import Counter
from typing import Any

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def grade(task: dict[str, Any], output: Any, spans: Any) -> float:
    found = TAGGED.findall(output) if isinstance(output, str) else []
    if not found:
        return 0.0
    right = [task["answer"], *task["answer_aliases"]]
    return 0.9 * max(f1(found[-1], one) for one in right) + 0.1


def f1(answer: str, right: str) -> float:
    answer_words, right_words = words(answer), words(right)
    if not answer_words or not right_words:
        return float(answer_words == right_words)
    shared = sum((Counter(answer_words) & Counter(right_words)).values())
    return 2 * shared / (len(answer_words) + len(right_words))


def words(text: str) -> list[str]:
    plain = "".join(" " if letter in string.punctuation else letter for letter in text.lower())
    return [word for word in plain.split() if word not in ("a", "an", "the")]
