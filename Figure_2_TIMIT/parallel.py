"""The same function over many items, on all cores, with progress."""
import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
import sys
import time

import tqdm

from experiment import UserError

# Forked: the workers use NumPy, soundfile and espeak-ng, never TensorFlow, and need not import it again.
FORK = multiprocessing.get_context('fork')


def start_worker():
  """Leaves Ctrl-C to the parent process, and ends when the parent is killed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'prctl'):  # Linux
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def in_parallel(function, items, what):
  """Calls function(item) in one process per core.

  Args:
    function: can be pickled; what it raises ends the whole call.
    items: list.
    what: name of the items in the progress report.

  Returns:
    list of results, in the order of the items.

  Raises:
    UserError: a process was killed.
  """
  start, results = time.time(), []
  bar = tqdm.tqdm(total=len(items), desc=what, disable=not sys.stderr.isatty(), dynamic_ncols=True)
  pool = concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=FORK, initializer=start_worker)
  try:
    for result in pool.map(function, items, chunksize=4 if len(items) > 100 else 1):
      results.append(result)
      bar.update()
      done = len(results)
      if bar.disable and (done == len(items) or done * 10 // len(items) > (done - 1) * 10 // len(items)):
        rate = done / max(time.time() - start, 1e-9)
        eta = tqdm.tqdm.format_interval((len(items) - done) / rate)
        print(f'{what} {done}/{len(items)}  {rate:.3g}/s  ETA {eta}', flush=True)
  except concurrent.futures.process.BrokenProcessPool:
    raise UserError('a process that worked on the corpus was killed (out of memory?); the same command goes on '
                    'where it stopped') from None
  finally:
    bar.close()
    pool.shutdown(cancel_futures=True)
  return results
