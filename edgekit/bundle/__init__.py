"""What is shipped: the manifest, the checks, the tokenizer and its golden corpus. Runs on the board."""
