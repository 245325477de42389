"""Who writes rollouts: our own sampler, or vLLM, behind one protocol."""
