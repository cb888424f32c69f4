# Block Tensor-Train, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/btt_gpu.py

include('gpu.py')
arms['btt'] = '--linear=btt --linear_layers=mlp+attn'
