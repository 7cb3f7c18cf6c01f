'use client';
// Hooks for React 18 and newer. Rendering subscribes to nothing: channels are entered after the commit, and left when the last
// component that uses them has gone. `public.d.ts` has the types for applications.

export { useCall, useChannel, useConnection, useEvents, useList, useMap, usePresence } from './hooks.js';
export { TidewireProvider, useTidewire } from './provider.js';
