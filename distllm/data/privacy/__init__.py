"""Personal data and secrets in text: found by kind, replaced by typed placeholders.

Where possible a finding needs more evidence than its form: a check digit, an allocated range,
a published prefix, or a word before it. Every search is linear in the length of the text.
"""

from __future__ import annotations

from distllm.data.privacy.page import Finding
from distllm.data.privacy.scrub import Scrubber, placeholder

__all__ = ["Finding", "Scrubber", "placeholder"]
