"""What an artefact does on a machine: speed, latency, memory, energy, and whether it still speaks sense."""
