"""Does the thought matter, does it say what the evidence says, and is it the true reason?"""
