"""Temporary."""

from collections import Counter


class Scrubber:
    def __init__(self, config):
        pass

    def scrub(self, text):
        return text, Counter()


def training_texts(pairs, config, total):
    return (text for _, text in pairs)
