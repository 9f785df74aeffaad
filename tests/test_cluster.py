"""Workers find each other by what their surroundings say, share a batch, and are heard when they fail; within one process."""
import json
import os
import signal
import socket
import tempfile
import threading

import pytest

import distribution
import machine
import replicas
from files import UserError
from kills import free_ports


def test_signals_that_a_library_begins_to_catch():
  with machine.SIGNALS.caught(), pytest.raises(machine.Interrupted):
    with machine.SIGNALS.kept():
      signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)  # os.kill may choose another thread
      signal.signal(signal.SIGTERM, lambda *_: None)


def test_what_is_said_of_a_worker_that_fails(capsys):
  lost, crashed = (open(os.devnull, 'rb'), tempfile.TemporaryFile())
  crashed.write(b'iteration 1/3\nTraceback (most recent call last):\n  File "x.py", line 1, in <module>\nValueError: why\n')
  with lost, crashed:
    for codes, logs, code, words in [
        ([1, 1], [None, crashed], 1, ['worker 1 of 2: Traceback', 'line 1', 'ValueError: why']),
        ([1, 1], [None, lost], 1, []), ([0, 1], [None, crashed], 0, []), ([None, -9], [None, lost], 1, ['ended by signal 9']),
        ([2, 2], [None, crashed], 2, [])]:
      assert distribution._exit_code(codes, logs) == code
      err = capsys.readouterr().err
      assert all(word in err for word in words) and bool(err) == bool(words) and 'iteration' not in err, err


def test_no_gpu_is_to_be_seen(monkeypatch):
  for seen in ('', '-1', '0,1'):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', seen)
    assert distribution._local_gpus() == []  # TensorFlow has none here


@pytest.mark.parametrize('text, words', [
    ('no JSON', 'no JSON'), ('{}', 'names no worker'), ('[1]', 'names no worker'),
    ('{"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}', 'names no worker'),
    ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}', 'names no worker'),
    ('{"cluster": {"worker": ["a:1", "b"]}, "task": {"type": "worker", "index": 0}}', 'names no worker'),
    ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "ps", "index": 0}}', 'names no worker'),
    ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": Infinity}}', 'names no worker'),
    ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": true}}', 'names no worker'),
    ('{"cluster": {"chief": ["c:3"], "worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}', 'names no worker'),
    ('{"cluster": {"chief": ["c:3"], "worker": ["a:1"]}, "task": {"type": "chief", "index": 1}}', 'names no worker'),
    ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', 'names no worker'),
    ('{"cluster": {"worker": {"1": "a:1", "2": "b:2"}}, "task": {"type": "worker", "index": 0}}', 'names no worker'),
    ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', 'an address twice'),
    ('{"cluster": {"worker": [":1", ":2"]}, "task": {"type": "worker", "index": 0}}', 'names no worker'),
    ('{"cluster": {"worker": ["a:1", "http://b:2"]}, "task": {"type": "worker", "index": 0}}', 'names no worker'),
    ('[' * 100000, 'no JSON')], ids=lambda text: text[:80])
def test_tf_config_that_makes_no_sense(monkeypatch, text, words):
  monkeypatch.setenv('TF_CONFIG', text)
  with pytest.raises(UserError, match=words):
    distribution.workers_of_tf_config()


def test_who_one_is(monkeypatch):
  monkeypatch.delenv('TF_CONFIG', raising=False)
  assert distribution.workers_of_tf_config() == ([], 0)
  cluster = dict(chief=['a:1'], worker=['b:2', 'c:3'])
  for task, index in ((dict(type='chief', index=0), 0), (dict(type='worker', index=1), 2)):
    monkeypatch.setenv('TF_CONFIG', json.dumps(dict(cluster=cluster, task=task)))
    assert distribution.workers_of_tf_config() == (['a:1', 'b:2', 'c:3'], index)
  with pytest.raises(UserError, match='not started by srun'):
    distribution.workers_of_slurm()
  first_ports = []
  for step in (0, 1):
    for name, value in dict(JOB_ID=7, STEP_ID=step, PROCID=2, STEP_NUM_TASKS=3, STEP_NODELIST='n[1-2]',
                            STEP_TASKS_PER_NODE='2,1').items():
      monkeypatch.setenv(f'SLURM_{name}', str(value))
    addresses, index = distribution.workers_of_slurm()
    first_ports.append(int(addresses[0].removeprefix('n1:')))
    assert (addresses[1:], index) == ([f'n1:{first_ports[-1] + 1}', f'n2:{first_ports[-1]}'], 2)
  assert abs(first_ports[0] - first_ports[1]) > 3 and all(10000 <= port < 30000 for port in first_ports)
  monkeypatch.setenv('SLURM_PROCID', '3')
  with pytest.raises(UserError, match='the number of no task'):
    distribution.workers_of_slurm()


def test_workers_that_do_not_meet():
  a, b = free_ports(2)
  with pytest.raises(UserError, match=f'worker 1 at 127.0.0.1:{b} has not come within 0.3 s'):
    distribution.meet([f'127.0.0.1:{a}', f'127.0.0.1:{b}'], 0, 0.3)
  with pytest.raises(UserError, match='worker 1 at .b:1 has not come within 0.3 s'):
    distribution.meet([f'127.0.0.1:{a}', '.b:1'], 0, 0.3)  # no name of a host
  with socket.create_server(('127.0.0.1', a)), pytest.raises(UserError, match=f'port {a} of worker 0 cannot be used'):
    distribution.meet([f'127.0.0.1:{a}', f'127.0.0.1:{b}'], 0, 0.3)
  with socket.create_server(('127.0.0.1', b)):
    distribution.meet([f'127.0.0.1:{a}', f'127.0.0.1:{b}'], 0, 0.3)


def test_parts_cover_a_batch():
  replicas.join(None, 1, 3)
  try:
    assert [replicas.part(7, k) for k in range(3)] == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert [replicas.part(3, k) for k in range(3)] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    with pytest.raises(UserError, match='a batch of 2 cannot be shared by 3'):
      replicas.part(2, 0)
    assert not replicas.leads() and replicas.worker() == 1
  finally:
    replicas.join()
  assert replicas.leads() and replicas.each(7, lambda part: part) == slice(0, 7)
