"""Supervised fine-tuning and reinforcement learning over shared loops."""
