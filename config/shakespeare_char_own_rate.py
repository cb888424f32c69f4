# shakespeare_char.py at the learning rate that suits it best, instead of the one it shares with
# expansive_shakespeare.py.
#
#   python train.py config/shakespeare_char_own_rate.py
#
# On a GPU 2e-3, the best of three for the lowest loss within 5,000 iterations (results/expansion_shakespeare_best);
# without one 4e-3, the best of four for the small preset (results/story).

import torch

include('shakespeare_char.py')

learning_rate = 2e-3 if torch.cuda.is_available() else 4e-3
min_lr = learning_rate / 10
out_dir = out_dir.replace('shakespeare-char', 'shakespeare-char-own-rate')
wandb_run_name = 'own-rate'
