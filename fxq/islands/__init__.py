"""Islands: the parts of a model that trace, each prepared on its own, in a model whose own Python runs around them.

The result is a graph module like any other, with the model's call signature. Its graph has one node: a call of a copy
of the user's model, at ``model``, in which each island is a prepared graph module with a state of its own.

prepare    the example inputs run through the model; what is given to a child is recorded and the child prepared with it
           (``search.py``). One that does not trace is entered. That the model computes the same with something else in
           the child's place is tried before: its Python may read more of a child than its call.
calibrate  runs the whole; the quantizers of all islands observe in place. Passes that improve run island by island, on
           what the whole gave to it (``calls.py``).
convert    converts each, compares each with the user's module on what it was given, and the whole where its outputs can
           be compared (``conversion.py``).
export     writes a file for each.
"""
