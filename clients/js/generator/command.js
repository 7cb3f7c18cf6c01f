// The entry point of the command `tidewire-types`. build.js puts it, and everything it imports, into one file.
import { VERSION } from '../src/version.js';
import { main } from './main.js';

main(process.argv.slice(2), VERSION).then((status) => {
  process.exitCode = status;
});
