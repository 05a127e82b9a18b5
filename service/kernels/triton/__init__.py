"""What the Triton kernels share: arithmetic, the table that routes rows to weights, the sizes of tiles.

The kernels of an op are beside its other backends, in `<op>/triton.py`. They compute in fp32 whatever they load, and a
row's arithmetic, tile and order of summing do not depend on how many rows there are: alone or in any batch, a sequence
gives the same bits.

Under TRITON_INTERPRET=1, read when these modules are imported, the same kernels run on the CPU without a compiler.
"""
