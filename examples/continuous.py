"""A language model that steps: sentences join it and leave it between two letters, and a long prompt holds up nobody.

The model predicts the next letter from the last four. It is small, but it is a model: it is trained when it starts, and
it has what large ones have, a prompt to read, a state in each slot, and one token for each slot in a step.
"""

import random
from collections import Counter, defaultdict
from pathlib import Path

import penstock as ps

CONTEXT = 4
CORPUS = Path(__file__).parent.parent / "ARCHITECTURE.md"


class Writer:
    """Goes on from a prompt, letter by letter."""

    def __init__(self, text: str) -> None:
        self.next: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for size in range(CONTEXT + 1):
            for at in range(size, len(text)):
                self.next[text[at - size : at]][text[at]] += 1
        self.slots: dict[int, Sentence] = {}

    def add(self, slot: int, prompt: str, letters: int = 80, seed: int = 0) -> int:
        """Take a slot; reading the prompt takes as many units as it has letters."""
        if letters < 1:
            raise ValueError("letters: at least 1")
        self.slots[slot] = Sentence(prompt, letters, random.Random(seed))
        return len(prompt)

    def step(self, slots: dict[int, int]) -> list[tuple[int, str]]:
        """Read on in a prompt, or write one letter, in each of these slots."""
        out: list[tuple[int, str]] = []
        for slot, units in slots.items():
            sentence = self.slots[slot]
            if sentence.unread:
                sentence.text += sentence.unread[:units]
                sentence.unread = sentence.unread[units:]
                continue
            out.append((slot, self.write(sentence)))
            if not sentence.letters:
                out.append((slot, ps.END))
        return out

    def write(self, sentence: "Sentence") -> str:
        """The longest context that was seen in training decides."""
        known = next(k for n in range(CONTEXT, -1, -1) if (k := sentence.text[len(sentence.text) - n :]) in self.next)
        letters = self.next[known]
        letter = sentence.random.choices(list(letters), list(letters.values()))[0]
        sentence.text += letter
        sentence.letters -= 1
        return letter

    def drop(self, slot: int) -> None:
        """The sentence is complete, or nobody wants it any more."""
        del self.slots[slot]


class Sentence:
    """What one slot holds."""

    def __init__(self, unread: str, letters: int, chance: random.Random) -> None:
        self.unread = unread
        self.letters = letters
        self.random = chance
        self.text = ""


writer = ps.service(Writer, CORPUS.read_text(), name="writer", batch=ps.Slots(16), on=ps.Thread(), order=ps.FairShare())
app = ps.App(writer)
