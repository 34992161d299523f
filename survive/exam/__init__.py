"""The exam: weaknesses are planted in a stack, and the gate that misses one has failed."""
