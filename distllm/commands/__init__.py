"""One module per sub-command of `distllm`, each with ``run(arguments) -> exit code``."""
