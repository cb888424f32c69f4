import sys; sys.path.insert(0,'.')
import torch, hardware
from configurator import load
from train import TrainConfig, Trainer
from torch.profiler import profile, ProfilerActivity
dev=hardware.choose_device('auto')
for argv in [['config/shakespeare_char.py'],['config/expansive_shakespeare.py','--expansion=2000'],['config/expansive_shakespeare.py','--expansion=10000']]:
    t=Trainer(load(TrainConfig,argv),dev)
    for _ in range(10): t.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU,ProfilerActivity.CUDA]) as p:
        for _ in range(10): t.step()
        torch.cuda.synchronize()
    ev=p.key_averages()
    tot=sum(e.self_device_time_total for e in ev if e.device_type==torch.autograd.DeviceType.CUDA)/10
    n=sum(e.count for e in ev if e.device_type==torch.autograd.DeviceType.CUDA)/10
    print('==',argv,'GPU busy us/step',tot,'kernels',n)
    print(ev.table(sort_by='self_cuda_time_total',row_limit=16,max_name_column_width=70).split('Self CPU time total')[0][-9000:] if False else '')
    for e in sorted([e for e in ev if e.device_type==torch.autograd.DeviceType.CUDA],key=lambda e:-e.self_device_time_total)[:14]: print(f'{e.self_device_time_total/10:9.1f} us {e.count/10:6.1f} {e.key[:100]}')
    print('CPU side:')
    for e in sorted([e for e in ev if e.device_type==torch.autograd.DeviceType.CPU],key=lambda e:-e.self_cpu_time_total)[:14]: print(f'{e.self_cpu_time_total/10:9.1f} us {e.count/10:6.1f} {e.key[:100]}')
    del t
