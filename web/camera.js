// Photographs. A phone's own camera app takes better pictures than a page does; elsewhere the page shows the camera.

const dialog = document.getElementById("camera");
const video = dialog.querySelector("video");
const ownApp = document.getElementById("photograph");

// Opens the camera; resolves with a File, or null if the user closes it. Throws an Error with a sentence for the user.
export async function takePhotograph() {
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) return fromOwnApp();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    throw new Error(error.name === "NotAllowedError" ? "The browser does not let this page use the camera."
                                                     : "No camera was found.");
  }
  try {
    video.srcObject = stream;
    return await fromVideo();
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  }
}

function fromOwnApp() {
  return new Promise((resolve) => {
    ownApp.onchange = () => { resolve(ownApp.files[0] ?? null); ownApp.value = ""; };
    ownApp.oncancel = () => resolve(null);
    ownApp.click();
  });
}

function fromVideo() {
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(null), { once: true });
    document.getElementById("shoot").onclick = () => {
      const canvas = document.createElement("canvas");
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      if (canvas.width === 0) return; // the camera has not yet sent its first picture
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => {
        resolve(new File([blob], "photograph.jpg", { type: "image/jpeg" }));
        dialog.close();
      }, "image/jpeg", 0.92);
    };
  });
}
