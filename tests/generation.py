"""One prompt continued by the plain generator, for comparison."""

from distllm.infer.generate import generate_rows
from distllm.infer.sampling import Sampling


def generate(model, prompt_ids, *, temperature=0.0, top_k=None, top_p=None, **keys):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    return generate_rows(model, [prompt_ids], sampling=sampling, **keys)[0]
