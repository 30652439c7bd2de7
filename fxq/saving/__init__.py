"""Saving: what a prepared or converted model is on disk, one safetensors file, and how it becomes a model again.

The tensors have the model's own names; what is not a tensor is JSON in the file's metadata. No data is in it, and
nothing of it is run: functions and classes come from the model that is given to ``load``, and from torch.nn.
"""
