"""What one paper alone says: prompts, rewards, stage order, presets."""
