"""What joins evalsuite to other tools: lm-eval, transformers, endpoints, Ray, the hub."""
