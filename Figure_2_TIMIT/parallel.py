"""The same function over many items, on all cores, with progress."""
import concurrent.futures
import sys
import time

import tqdm

from files import UserError
import machine


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
  start, results = time.monotonic(), []
  bar = tqdm.tqdm(total=len(items), desc=what, disable=not sys.stderr.isatty(), dynamic_ncols=True)
  pool = concurrent.futures.ProcessPoolExecutor(len(machine.cores()), mp_context=machine.WORKERS,
                                                initializer=machine.follow_parent)
  try:
    for result in pool.map(function, items, chunksize=4 if len(items) > 100 else 1):
      results.append(result)
      bar.update()
      done = len(results)
      if bar.disable and (done == len(items) or done * 10 // len(items) > (done - 1) * 10 // len(items)):
        rate = done / max(time.monotonic() - start, 1e-9)
        eta = tqdm.tqdm.format_interval((len(items) - done) / rate)
        print(f'{what} {done}/{len(items)}  {rate:.3g}/s  ETA {eta}', flush=True)
  except concurrent.futures.process.BrokenProcessPool:
    raise UserError('a process that worked on the corpus was killed (out of memory?); the same command goes on '
                    'where it stopped') from None
  finally:
    bar.close()
    pool.shutdown(cancel_futures=True)
  return results
