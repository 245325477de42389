"""Rollouts, rewards, advantages and loss, handed to one loop."""
