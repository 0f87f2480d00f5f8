"""Entry points for deepspeed, torchrun, srun and bare Python."""
