"""Cleaning: rules that edit a document, judge its quality, and tell its language."""

from distllm.data.clean.cleaner import Cleaner
from distllm.data.clean.filters import marks_of_filters
from distllm.data.clean.profiles import load_profile

__all__ = ["Cleaner", "load_profile", "marks_of_filters"]
