-- For Orthanc: send every new series of images to saqm's node. What comes back, reports and maps, is not sent again.
local NOT_IMAGES = { SR = true, KO = true, PR = true, SEG = true, RTDOSE = true, RTSTRUCT = true, RTPLAN = true, OT = true, DOC = true }

function OnStableSeries(seriesId, tags, metadata)
   if not NOT_IMAGES[tags["Modality"]] then
      RestApiPost("/modalities/saqm/store", DumpJson({ Resources = { seriesId }, Synchronous = false }))
   end
end
