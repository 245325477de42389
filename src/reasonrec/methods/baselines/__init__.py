"""What other papers do with a language model, on the backbone and the loop of our own methods."""
