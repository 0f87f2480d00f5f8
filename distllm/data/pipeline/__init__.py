"""Raw input to a dataset directory, as content-addressed stages that any number of processes share."""

from distllm.data.pipeline.run import pipeline_identity, prepare, rehearse, work_directory

__all__ = ["pipeline_identity", "prepare", "rehearse", "work_directory"]
