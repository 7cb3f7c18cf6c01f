import { fileURLToPath } from 'node:url';
import react from '@vitejs/plugin-react';

// The client of this checkout. In an application of your own: `npm install tidewire`, and no alias.
const client = fileURLToPath(new URL('../../../clients/js/src', import.meta.url));

export default {
  plugins: [react()],
  resolve: {
    alias: { 'tidewire/react': `${client}/react/index.js`, tidewire: `${client}/tidewire.js` },
    dedupe: ['react', 'react-dom'],
  },
};
